"""Held-out scenarios: written from how GPU hosts behave, before their author had read a detector.

They share the model of the corpus (host, deeds, truth), and neither its programs nor its disturbances. What each
plants was written down before any of them was run; docs/reference/causes.md tells the score of that first run and
what became of every error.
"""

from __future__ import annotations

from tests.corpus.heldout.calls import CALLS
from tests.corpus.heldout.calls_twins import TWINS as CALLS_TWINS
from tests.corpus.heldout.machines import MACHINES
from tests.corpus.heldout.ranks import RANKS
from tests.corpus.heldout.silences import SILENCES
from tests.corpus.heldout.silences_twins import TWINS as SILENCES_TWINS
from tests.corpus.model import Scenario

HELD_OUT: tuple[Scenario, ...] = (
    *CALLS, *CALLS_TWINS, *SILENCES, *SILENCES_TWINS, *RANKS, *MACHINES,
)  # fmt: skip

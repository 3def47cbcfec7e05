"""Scenes in which a rule finds something, one module per rule: ``scenes() -> list[Scene]``.

Together the scenes of a rule use every text that it declares. A rule without a module finds something in
``everything()`` of the conformance test.
"""

from __future__ import annotations

import importlib
import importlib.util

from tests.scenes import Scene


def scenes_of(rule_id: str) -> list[Scene]:
    """The scenes made for one rule; none if it has no module."""
    name = f"{__name__}.{rule_id}"
    if importlib.util.find_spec(name) is None:
        return []
    made: list[Scene] = importlib.import_module(name).scenes()
    return made

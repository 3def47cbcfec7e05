"""``python -m bench.causes``: precision and recall of the causes that this tree names, next to the field's usual rule.

Plays every scenario of ``tests/corpus`` and asks both. Prints, per cause and in all, planted, right, wrong and missed
claims, precision, recall, and by how many points of share the right ones are off. ``--seeds N`` plays each N times,
every time with other sizes and times; ``--list`` names what was claimed wrongly or missed; ``--corpus heldout`` plays
the scenarios that were written without a look at the detectors instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial

from bench.causes import baseline, score
from bench.causes.score import Claims, Judged, Score
from tests.corpus.heldout import HELD_OUT
from tests.corpus.model import Kind, Played, Scenario, play
from tests.corpus.scenarios import SCENARIOS

HEAD = ("cause", "planted", "right", "wrong", "missed", "precision", "recall", "share error: median", "largest")
SIDES: dict[str, Callable[[Played], Claims]] = {
    "this tree": score.claimed,
    "baseline, p99": baseline.claimed,
    "baseline, longest call": partial(baseline.claimed, longest=True),
}
CORPORA: dict[str, Sequence[Scenario]] = {"own": SCENARIOS, "heldout": HELD_OUT}
KINDS: tuple[Kind, ...] = ("single", "compound", "twin")


def run(seeds: int, only: str = "", corpus: str = "own") -> dict[str, list[Judged]]:
    """Every side on every scenario whose name contains ``only``; seed by seed."""
    out: dict[str, list[Judged]] = {name: [] for name in SIDES}
    for seed in range(seeds):
        for scenario in CORPORA[corpus]:
            if only in scenario.name:
                played = play(scenario, seed)
                for name, claims in SIDES.items():
                    out[name].append(score.judge(played, claims(played)))
    return out


def main(arguments: Sequence[str]) -> int:
    """Run from the command line; 0 whatever the scores are."""
    parser = argparse.ArgumentParser(prog="python -m bench.causes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="times that each scenario is played (1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios whose name contains it")
    parser.add_argument("--corpus", choices=sorted(CORPORA), default="own", help="which scenarios (own)")
    parser.add_argument("--list", action="store_true", help="name what was claimed wrongly or missed")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    options = parser.parse_args(arguments)
    sides = run(options.seeds, options.only, options.corpus)
    if options.json:
        print(json.dumps({name: _json(judged) for name, judged in sides.items()}, indent=1, sort_keys=True))
        return 0
    played = [j.played.scenario.kind for j in sides["this tree"]]
    counts = ", ".join(f"{played.count(kind)} {kind}" for kind in KINDS)
    print(f"{len(played)} scenarios ({counts}), {options.seeds} seed{'s' if options.seeds > 1 else ''}")
    for name, judged in sides.items():
        print(f"\n{name}")
        _print_table([HEAD, *_rows(score.summed(judged))])
        if options.list and name == "this tree":
            _print_list(judged)
    return 0


def _rows(scores: Mapping[str, Score]) -> list[tuple[str, ...]]:
    rows = [_row(cause, s) for cause, s in scores.items()]
    rows.append(_row("causes the baseline can name", score.total(scores, baseline.KNOWN.__contains__)))
    return [*rows, _row("all", score.total(scores))]


def _row(name: str, s: Score) -> tuple[str, ...]:
    errors = sorted(s.errors)
    middle, most = (errors[len(errors) // 2], errors[-1]) if errors else (None, None)
    numbers = (s.right + s.missed, s.right, s.wrong, s.missed)
    return (name, *map(str, numbers), _percent(s.precision), _percent(s.recall), _points(middle), _points(most))


def _percent(share: Fraction | None) -> str:
    return "–" if share is None else f"{float(share * 100):.1f} %"


def _points(error: Fraction | None) -> str:
    return "–" if error is None else f"{float(error):.2f}"


def _json(judged: Sequence[Judged]) -> dict[str, dict[str, object]]:
    scores = score.summed(judged)
    whole = {**scores, "all": score.total(scores), "known": score.total(scores, baseline.KNOWN.__contains__)}
    return {
        cause: {
            "right": s.right, "wrong": s.wrong, "missed": s.missed,
            "precision": None if s.precision is None else float(s.precision),
            "recall": None if s.recall is None else float(s.recall),
            "share_errors_points": [float(e) for e in sorted(s.errors)],
        }
        for cause, s in whole.items()
    }  # fmt: skip


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        print("  " + "  ".join(cells).rstrip())


def _print_list(judged: Sequence[Judged]) -> None:
    for j in judged:
        for what, keys in (("wrong", j.wrong), ("missed", j.missed)):
            for cause, pid in keys:
                print(f"  {what}: {cause} of process {pid} in “{j.played.scenario.name}”")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

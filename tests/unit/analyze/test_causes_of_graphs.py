"""CUDA graphs that are made again or never launched."""

from __future__ import annotations

from tests.rule_scenes.graph_recapture import EXECUTABLE, capture, steps
from tests.rule_scenes.graph_unused import made
from tests.scenes import MS, T0, US, S, Scene
from tests.unit.analyze.test_causes_of_calls import chains, number


def test_making_after_the_first_launch_is_making_again() -> None:
    (chain,) = chains(steps(count=50), "graph_recapture")
    assert number(chain, "effect_time") == 5 * 70 * MS
    assert number(chain, "explained") == 4 * 70 * MS
    assert number(chain, "captures") == number(chain, "makings") == 4
    assert chain.shares[-1].time.value == 70 * MS, "the first making is start-up, and explained by nothing"


def test_a_graph_that_is_made_once_or_before_any_launch_is_not_made_again() -> None:
    assert chains(steps(again=False, count=5), "graph_recapture") == []
    assert chains(made(), "graph_recapture") == []


def warmed_up(replays: int, between: int) -> Scene:
    """Eight graphs, made one after the other and launched ``between`` times each, then ``replays`` launches."""
    scene = Scene().clock().process(7)
    launches = [T0 + S + i * 200 * MS + 50 * MS + n * MS for i in range(8) for n in range(between)]
    for i in range(8):
        capture(scene, T0 + S + i * 200 * MS, EXECUTABLE + i)
    for at in (*launches, *(T0 + 3 * S + n * 50 * MS for n in range(replays))):
        scene.cuda(7, "cudaGraphLaunch", at, 20 * US, handle=EXECUTABLE + at % 8, stream=3)
    return scene


def test_a_warm_up_that_tries_each_graph_is_not_making_again() -> None:
    assert chains(warmed_up(replays=40, between=2), "graph_recapture") == []
    assert chains(warmed_up(replays=0, between=10), "graph_recapture"), "replayed, and made again"
    assert chains(warmed_up(replays=0, between=2), "graph_recapture"), "it never came to replay what it had made"


def test_graphs_that_no_launch_names() -> None:
    (chain,) = chains(made(), "graph_unused")
    assert number(chain, "graphs") == 9
    assert number(chain, "explained") == 9 * 40 * MS
    assert number(chain, "effect_time") == 10 * 40 * MS


def test_launched_graphs_and_launches_that_do_not_tell_theirs_are_none() -> None:
    assert chains(made(launched=10), "graph_unused") == []
    assert chains(made(told=False), "graph_unused") == []
    (chain,) = chains(made(launched=0), "graph_unused")
    assert number(chain, "graphs") == 10

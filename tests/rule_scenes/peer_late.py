"""Four ranks, 200 steps; rank 2 comes 30 ms late once, so that the others' synchronisations are slow in that step."""

from tests.scenes import MS, Scene, collectives


def scene() -> Scene:
    made = collectives("asynchronous", steps=200, late={2: 30 * MS}, late_steps=[70])
    for rank in range(4):
        made.process(100 + rank)
    return made


def scenes() -> list[Scene]:
    return [scene()]

"""GPUs with every kind of memory trouble, one each."""

from typing import Any

from tests.rule_scenes.power_cap import health
from tests.scenes import T0, S, Scene


def grown(at: int) -> int:
    """An error every 20 s."""
    return (at - T0) // (20 * S)


def scenes() -> list[Scene]:
    scene = Scene().clock()
    clean: dict[str, Any] = {"ecc_enabled": 1, "ecc_corrected_volatile": 0, "ecc_uncorrected_volatile": 0}
    life = {"ecc_corrected_aggregate": 7, "ecc_uncorrected_aggregate": 2}
    health(scene, gpu=0, **{**clean, **life, "ecc_corrected_volatile": grown, "ecc_uncorrected_volatile": grown})
    health(scene, gpu=1, **clean, **life, remapped_rows_pending=1, remapped_rows_failed=1, remapped_rows_corrected=3)
    health(scene, gpu=2, **clean, retired_pages_pending=1, retired_pages_single_bit=4, retired_pages_double_bit=1)
    return [scene]

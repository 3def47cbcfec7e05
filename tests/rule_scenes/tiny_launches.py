"""A thread that launches every 20 µs: small kernels in one scene, large ones in the other."""

from tests.scenes import T0, US, Scene


def burst(
    count: int = 1_200, threads: int = 256, took: int = 8 * US, every: int = 20 * US, grid: int | None = 2
) -> Scene:
    """Launches of ``grid`` blocks."""
    scene = Scene().clock().process(7)
    shape = {"grid_y": 1, "grid_z": 1, "block_x": threads, "block_y": 1, "block_z": 1}
    for i in range(count):
        scene.cuda(7, "cudaLaunchKernel", T0 + i * every, took, grid_x=grid, **shape)
    return scene


def scenes() -> list[Scene]:
    return [burst(), burst(grid=2_000)]

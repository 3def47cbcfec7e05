"""A thread that launches a graph in every step, and captures and instantiates it anew in every tenth."""

from tests.scenes import MS, T0, US, S, Scene

GRAPH, EXECUTABLE = 0x5000, 0x6000


def capture(scene: Scene, at: int, executable: int, took: int = 30 * MS, pid: int = 7) -> Scene:
    """A capture of ``took``, and an instantiation of 10 ms that makes ``executable``."""
    scene.cuda(pid, "cudaStreamBeginCapture", at, 5 * US, stream=3, flags=0)
    scene.cuda(pid, "cudaLaunchKernel", at + MS, 5 * US, stream=3)
    scene.cuda(pid, "cudaStreamEndCapture", at + took - 5 * US, 5 * US, stream=3, handle=GRAPH)
    return scene.cuda(pid, "cudaGraphInstantiate", at + took, 10 * MS, handle=GRAPH, other_handle=executable, flags=0)


def steps(again: bool = True, count: int = 50, launched: bool = True) -> Scene:
    """``count`` steps of 100 ms; the graph is made in the first, and in every tenth if ``again``."""
    scene = Scene().clock().process(7)
    for i in range(count):
        at, number = T0 + S + i * 100 * MS, i // 10 if again else 0
        if i % 10 == 0 and (again or i == 0):
            capture(scene, at, EXECUTABLE + number, took=60 * MS)
        if launched:
            scene.cuda(7, "cudaGraphLaunch", at + 80 * MS, 20 * US, handle=EXECUTABLE + number, stream=3)
    return scene


def scenes() -> list[Scene]:
    return [steps(count=100)]

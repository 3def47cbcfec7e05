"""What the kernels boot: Debian's kernel packages, a Debian user space, the wheel of this tree, and its tests.

Made once into ``build/torture-kernels`` and kept there. Kernels and packages come through apt by name, and are whatever
it offers today; the report says which. The Python packages are those of requirements/*.lock, checked by their hashes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HOME = REPOSITORY / "build" / "torture-kernels"

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86", "debootstrap": "debootstrap", "cpio": "cpio", "busybox": "busybox-static",
    "mke2fs": "e2fsprogs", "dpkg-deb": "dpkg", "apt-get": "apt",
}  # fmt: skip
"""Program → the Debian package that has it."""

USERLAND = (
    "python3", "python3-venv", "libbpf1", "gcc", "libc6-dev", "kmod", "procps", "iproute2", "util-linux", "libcap2-bin",
    "openssl", "xxd", "strace", "nftables",
)  # fmt: skip
PYTHON_VERSION = "3.11"
"""Of Debian bookworm, which the user space is."""

TEST_PACKAGES = ("pytest", "pytest-xdist", "execnet", "pluggy", "iniconfig", "packaging", "pygments", "nvidia-nvml-dev",
                 "hypothesis", "sortedcontainers", "duckdb", "pyarrow")  # fmt: skip
"""What runs the tests, and what the analysis of the planted causes needs beside numpy."""

MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "loop", "null_blk", "overlay",
           "veth", "nf_tables", "nft_numgen")  # fmt: skip
"""For the root disk, for block devices that tests make slow, and for the link on which the tests of TCP lose packets.
Those a kernel has built in are none."""

DISK_SIZE = "3G"


@dataclass(frozen=True)
class Kernel:
    """``name`` as the report has it, ``package`` as apt knows it (a meta package: the newest of that series)."""

    name: str
    package: str


@dataclass(frozen=True)
class Boot:
    """What QEMU is given. ``release`` is ``uname -r``; ``version`` that of the package."""

    kernel: Kernel
    release: str
    version: str
    image: Path
    initramfs: Path


def missing_tools() -> list[str]:
    """Debian packages that have to be installed first."""
    return sorted({package for program, package in TOOLS.items() if shutil.which(program) is None})


def boot_files(kernel: Kernel) -> Boot:
    """Fetch and unpack a kernel, and make its initramfs. CalledProcessError with the words of the tool that failed."""
    package = _newest(kernel.package)
    folder = HOME / package
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _run("apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=folder)
        (deb,) = folder.glob("*.deb")
        _run("dpkg-deb", "-x", deb, folder / "files")
        (folder / "done").write_text(_run("dpkg-deb", "-f", deb, "Version").strip())
        deb.unlink()
    (image,) = (folder / "files/boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    return Boot(kernel, release, (folder / "done").read_text(), image, _initramfs(folder, release))


def _newest(meta: str) -> str:
    """The package a meta package stands for today."""
    found = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", meta))
    if found is None:
        raise LookupError(f"apt does not know {meta}")
    return found[1]


def module_files(modules: Path, names: Iterable[str]) -> list[Path]:
    """The modules and all that they need, in the order in which they can be loaded; built-in ones are left out.

    ``modules`` is lib/modules/RELEASE. What ``modules.dep`` would say is in each module's own ``depends=``.
    """
    files = {p.name.partition(".")[0].replace("-", "_"): p for p in (modules / "kernel").rglob("*.ko*")}
    ordered: dict[Path, None] = {}

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is not None and path not in ordered:
            for needed in _depends(path):
                add(needed)
            ordered[path] = None

    for name in names:
        add(name)
    return list(ordered)


def _depends(module: Path) -> list[str]:
    data = module.read_bytes()
    if module.suffix == ".xz":
        import lzma

        data = lzma.decompress(data)
    found = re.search(rb"(?:\A|\0)depends=([^\0]*)\0", data)
    return [n for n in found[1].decode("ascii").split(",") if n] if found else []


INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; /bin/busybox sleep 1; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root || exec /bin/busybox poweroff -f
/bin/busybox umount /proc
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /bin/sh /src/tests/torture/kernels_init.sh
"""


def _initramfs(folder: Path, release: str) -> Path:
    tree, out = folder / "initramfs", folder / "initramfs.cpio"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "dev", "proc", "root", "modules"):
        (tree / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin/busybox")
    order = []
    for path in module_files(folder / "files/lib/modules" / release, MODULES):
        name = path.name
        if path.suffix == ".xz":
            name = path.stem
            (tree / "modules" / name).write_bytes(
                subprocess.run(["xz", "-dc", path], check=True, capture_output=True).stdout
            )
        else:
            shutil.copy(path, tree / "modules" / name)
        order.append(name)
    (tree / "modules/order").write_text("".join(f"{name}\n" for name in order))
    init = tree / "init"
    init.write_text(INIT)
    init.chmod(0o755)
    names = b"\0".join(str(p.relative_to(tree)).encode() for p in sorted(tree.rglob("*")))
    with out.open("wb") as f:
        subprocess.run(
            ["cpio", "--null", "--create", "--format=newc", "--quiet"], cwd=tree, input=names, stdout=f, check=True
        )
    return out


def disk() -> Path:
    """An ext4 image of the user space with the wheel of this tree installed, and the tests beside it in /src."""
    root = _userland()
    wheels = HOME / "wheels"
    _wheels(wheels)
    environment = root / "opt/audit"
    shutil.rmtree(environment, ignore_errors=True)
    shutil.rmtree(root / "wheels", ignore_errors=True)
    shutil.copytree(wheels, root / "wheels")
    _run("chroot", root, "python3", "-m", "venv", "/opt/audit")
    names = [f"/wheels/{p.name}" for p in sorted(wheels.glob("*.whl"))]
    _run("chroot", root, "/opt/audit/bin/pip", "install", "-qq", "--no-index", "--no-deps", *names)
    shutil.rmtree(root / "wheels")
    shutil.rmtree(root / "src", ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "golden", "data")
    shutil.copytree(REPOSITORY / "tests", root / "src/tests", ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", root / "src/pyproject.toml")
    image = HOME / "disk.img"
    image.unlink(missing_ok=True)
    _run("mke2fs", "-q", "-t", "ext4", "-d", root, image, DISK_SIZE)
    return image


def _userland() -> Path:
    root, wanted = HOME / "userland", " ".join(USERLAND)
    stamp = HOME / "userland.stamp"
    if not (stamp.exists() and stamp.read_text() == wanted):
        shutil.rmtree(root, ignore_errors=True)
        _run("debootstrap", "--variant=minbase", f"--include={','.join(USERLAND)}", "bookworm", root)
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        _run("chroot", root, "useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "gpu-audit")
        stamp.write_text(wanted)
    return root


def _wheels(folder: Path) -> None:
    """The wheel of this tree and those of the locks, each checked by its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("gpu_audit-*.whl"):
        old.unlink()
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=REPOSITORY)
    tests = _part_of_lock((REPOSITORY / "requirements/dev.lock").read_text("utf-8"), TEST_PACKAGES)
    lock = (REPOSITORY / "requirements/capture.lock").read_text("utf-8") + tests
    stamp = folder / "stamp"
    digest = hashlib.sha256(lock.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    for old in folder.glob("*.whl"):
        if not old.name.startswith("gpu_audit-"):
            old.unlink()
    requirements = folder / "requirements.txt"
    requirements.write_text(lock)
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (36, 34, 28, 27, 17)]
    _run(
        sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--require-hashes", "--no-deps",
        "--only-binary=:all:", f"--python-version={PYTHON_VERSION}", "--implementation=cp", "--abi=cp311", "--abi=abi3",
        "--abi=none", *platforms, "--platform=manylinux2014_x86_64", "--platform=any", "-r", requirements, "-d", folder,
    )  # fmt: skip
    stamp.write_text(digest)


def _part_of_lock(lock: str, names: Iterable[str]) -> str:
    """The entries of these packages, hashes included."""
    entries = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)
    wanted = {n.lower() for n in names}
    return "".join(e for e in entries if re.split(r"[=\s\[]", e, maxsplit=1)[0].lower() in wanted)


def _run(*command: object, cwd: Path | None = None) -> str:
    """Run a tool; CalledProcessError that shows what it said."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        done.check_returncode()
    return done.stdout

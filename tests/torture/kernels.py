"""Other kernels: boots Debian's in QEMU with the wheel of this tree inside, and runs the capture's tests there.

Nothing here knows what a kernel can do: the guest (:mod:`tests.torture.kernels_guest`) tries, and
:meth:`Measured.problems` says what must have come out of it. Without /dev/kvm the machine is emulated, some forty times
slower than a real one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.torture import kernels_image
from tests.torture.kernels_image import HOME, Boot, Kernel, boot_files
from tests.torture.kernels_report import Measured, document, table

KERNELS = (
    Kernel("Debian 12", "linux-image-amd64"),
    Kernel("Debian 12 with 6.12", "linux-image-6.12-amd64"),
)
"""What bookworm and its updates offer, newest first of each series."""

DEADLINE_S = 3 * 3600.0
"""Of one kernel, emulated on a busy machine. Nothing is measured with it."""

ONE_CLOCK = "clocksource=tsc tsc=reliable"
"""Words for an emulated kernel. It calibrates its clocks against each other, and there they differ by a tenth: what the
scheduler counts (run delay, throttled time) would not compare with time stamps."""

REPORT = kernels_image.REPOSITORY / "docs" / "reference" / "kernels.md"


def run(count: int, seed: int) -> list[str]:
    """Boot the first ``count`` kernels side by side; sentences about what was expected and did not hold."""
    needs = _needs()
    if needs:
        return [needs]
    disk = kernels_image.disk()
    problems, all_measured = [], []
    boots = [kernels_image.boot_files(kernel) for kernel in KERNELS[:count]]
    with ThreadPoolExecutor(len(boots)) as pool:
        for measured in pool.map(lambda boot: _measure(boot, disk), boots):
            all_measured.append(measured)
            boot = measured.boot
            problems += [f"{boot.kernel.name} ({boot.release}): {p}" for p in measured.problems()]
            print(table(measured), flush=True)
    said = locked_down(disk)
    if "locked down (confidentiality)" not in said:
        problems.append(f"{KERNELS[0].name}, locked down: what was said does not name it: {said}")
    if count >= len(KERNELS):
        REPORT.write_text(document(all_measured, said), encoding="utf-8")
        print(f"written: {REPORT}")
    return problems


def only(files: Sequence[str]) -> list[str]:
    """Boot the newest kernel for these files of tests/integration alone; what failed. No report is written."""
    needs = _needs()
    if needs:
        return [needs]
    boot, words = boot_files(KERNELS[-1]), f"audit_steps=check,tests audit_tests={','.join(files)}"
    started = time.monotonic()
    measured = Measured.read(boot, boot_and_wait(boot, kernels_image.disk(), words), time.monotonic() - started)
    print(table(measured), flush=True)
    return list(measured.test_problems(files))


def _needs() -> str:
    """What is lacking on this host before anything can be booted; empty if nothing is."""
    missing = kernels_image.missing_tools()
    if missing:
        return f"nothing was booted: it needs apt-get install {' '.join(missing)}"
    return "nothing was booted: it needs root, for debootstrap and chroot" if os.geteuid() != 0 else ""


def _measure(boot: Boot, disk: Path) -> Measured:
    started = time.monotonic()
    return Measured.read(boot, boot_and_wait(boot, disk), time.monotonic() - started)


def locked_down(disk: Path) -> str:
    """What `audit check` says of BPF on the first kernel, booted with lockdown=confidentiality."""
    folder = boot_and_wait(boot_files(KERNELS[0]), disk, "lockdown=confidentiality audit_steps=facts,check")
    try:
        lines = json.loads((folder / "check.json").read_text("utf-8"))["results"]
    except (OSError, ValueError, KeyError):
        return "nothing came out of the machine"
    return next((str(line["detail"]) for line in lines if line["name"] == "BPF programs"), "it was not tried")


def boot_and_wait(boot: Boot, disk: Path, more: str = "") -> Path:
    """Run the machine until it ends itself; the folder with what it left. ``more``: further words for the kernel."""
    folder = HOME / "results" / f"{boot.release}{'-' + more.partition(' ')[0].replace(',', '+') if more else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    out, log = folder / "results.tar", folder / "console.log"
    with out.open("wb") as f:
        f.truncate(256 << 20)
    kvm = _kvm()
    accelerator = ["-accel", "kvm", "-cpu", "host"] if kvm else ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]
    command = [
        "qemu-system-x86_64", *accelerator, "-smp", "2", "-m", "3072", "-nodefaults", "-display", "none", "-no-reboot",
        "-serial", f"file:{log}", "-kernel", str(boot.image), "-initrd", str(boot.initramfs),
        "-append", f"console=ttyS0 quiet panic=-1 psi=1 audit_accel={'kvm' if kvm else f'tcg {ONE_CLOCK}'} {more}",
        "-drive", f"file={disk},format=raw,if=virtio,snapshot=on", "-drive", f"file={out},format=raw,if=virtio",
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, timeout=DEADLINE_S, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        print(f"{boot.release}: not done after {DEADLINE_S:.0f} s; {log} has what it said")
    _unpack(out, folder)
    return folder


def _kvm() -> bool:
    """Whether the processor can run a machine. /dev/kvm alone does not say so: some hosts have it and only emulate."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text("ascii", "replace"), re.MULTILINE)
    return (
        os.access("/dev/kvm", os.R_OK | os.W_OK) and flags is not None and bool({"vmx", "svm"} & set(flags[1].split()))
    )


def _unpack(archive: Path, folder: Path) -> None:
    for old in folder.glob("*.json"):
        old.unlink()
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.ReadError:  # the machine never came that far
        return

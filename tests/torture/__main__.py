"""``python -m tests.torture``: one subcommand per kind of torture; every failure names the seed that repeats it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.torture import crashes, fuzz, kernels, nccl_real, soak, vllm_live


@dataclass(frozen=True)
class Torture:
    """``run(count, seed)`` returns sentences about what failed; a ``sample`` of 0 leaves it out."""

    run: Callable[[int, int], list[str]]
    meaning: str
    full: int
    sample: int


TORTURES = {
    "crashes": Torture(crashes.run, "kill -9 a capture at random moments; the sealed prefix must verify", 300, 8),
    "fuzz": Torture(fuzz.run, "mutate bundles and findings: nothing changed may pass or crash", 20_000, 250),
    "kernels": Torture(
        kernels.run, "boot Debian's 6.1 and 6.12 in QEMU, capture there (300 MB are fetched)", len(kernels.KERNELS), 0
    ),
    "nccl-real": Torture(nccl_real.run, "probe the real NCCL wheel (hundreds of MB are fetched)", 1, 0),
    "soak": Torture(soak.run, "minutes at 50,000 calls/s beside another tracer: nothing grows or is lost", 30, 0),
    "vllm": Torture(vllm_live.run, "capture a real vLLM server on the CPU under load (3 GB are fetched)", 200, 0),
}


def main() -> int:
    """Run what the command line names; status 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    kinds = "\n".join(f"  {name:<10} {t.meaning}" for name, t in TORTURES.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"kinds:\n{kinds}"
    parser.add_argument("kind", choices=["all", *TORTURES])
    parser.add_argument("--sample", action="store_true", help="about a minute for all kinds together")
    parser.add_argument("--count", type=int, help="how often, instead of the kind's own number")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices (default 1)")
    parser.add_argument("--only", metavar="FILES", help="kernels: boot the newest for these files of tests/integration")
    args = parser.parse_args()
    if args.only:
        if args.kind != "kernels":
            parser.error("--only goes with kernels")
        found = kernels.only(args.only.split(","))
        print("\n".join([*(f"kernels: FAILED {problem}" for problem in found), f"kernels: {len(found)} failed"]))
        return 1 if found else 0
    failed = 0
    for name, torture in TORTURES.items():
        count = args.count if args.count is not None else torture.sample if args.sample else torture.full
        if args.kind not in ("all", name) or count == 0:
            if args.kind in ("all", name):
                print(f"{name}: not in the sample, for the time it takes: {torture.meaning}")
            continue
        started = time.monotonic()
        problems = torture.run(count, args.seed)
        failed += len(problems)
        for problem in problems:
            print(f"{name}: FAILED {problem}")
        took = time.monotonic() - started
        print(
            f"{name}: {count - min(count, len(problems))} of {count} held in {took:.0f} s (seed {args.seed})",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

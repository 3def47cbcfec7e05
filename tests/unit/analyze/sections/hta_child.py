"""Run by the Python that has HolisticTraceAnalysis: its breakdown of each trace that is named, as JSON lines."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path


def main(paths: list[str]) -> None:
    """Load each trace as HTA does, with the last profiler step and without it."""
    warnings.simplefilter("ignore")
    from hta.trace_analysis import TraceAnalysis  # type: ignore[import-not-found]

    for path in paths:
        for last_step in (True, False):
            analysis = TraceAnalysis(
                trace_files={0: path}, trace_dir=str(Path(path).parent), include_last_profiler_step=last_step
            )
            (times,) = analysis.get_temporal_breakdown(visualize=False).to_dict("records")
            (overlap,) = analysis.get_comm_comp_overlap(visualize=False).to_dict("records")
            print("HTA " + json.dumps({
                "trace": Path(path).name.removesuffix(".json.gz"), "last_step": last_step,
                "span": times["kernel_time(us)"], "idle": times["idle_time(us)"],
                "compute": times["compute_time(us)"], "other": times["non_compute_time(us)"],
                "overlap_percent": overlap["comp_comm_overlap_pctg"],
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])

"""One module per figure. Each declares ``NAME`` and ``TITLE`` and has ``measure(plan) -> Figure``."""

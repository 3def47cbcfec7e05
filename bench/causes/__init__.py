"""Causes, scored on a corpus of known truth (``python -m bench.causes``), and evidence of any size to time them on."""

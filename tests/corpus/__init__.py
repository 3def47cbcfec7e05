"""Captures with known truth: who does what when, told as data, and the rows a recorder would have written of it.

A scenario (``scenarios.py``) is a list of deeds; ``play`` turns it into a scene and into what was planted. Sizes, times
and places are drawn from a seed out of ranges that describe hosts; no number here is taken from, or depends on, the
thresholds of what is tested against it.
"""

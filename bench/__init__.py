"""What the work costs, as ratios: each figure stands beside a baseline measured in the same run, turn by turn.

``python -m bench`` measures everything and prints a table; :mod:`bench.__main__` tells of its options. Absolute values
are printed too, but they are this machine's; only the ratios are meant to be carried elsewhere.
"""

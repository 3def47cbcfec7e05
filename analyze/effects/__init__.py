"""Kinds of effect, one per file: each has ``KIND`` and ``effects(context) -> Sequence[Effect]``."""

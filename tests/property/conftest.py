"""In CI a property that says nothing of its own gets fewer examples: its search goes on wherever it is run by hand."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("in-ci", max_examples=30, deadline=None)
if os.environ.get("GPU_AUDIT_IN_CI"):
    settings.load_profile("in-ci")

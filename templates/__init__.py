"""Templates, style, script and fonts of the report: everything a designer touches, and no Python."""

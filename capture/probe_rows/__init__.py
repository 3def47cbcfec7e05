"""The rows of the probe table, one file per library."""

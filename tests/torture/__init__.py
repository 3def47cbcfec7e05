"""Tests that take minutes to hours; ``scripts/torture`` runs them, CI runs a one-minute sample."""

"""Findings → view → HTML, PDF, signatures, packet."""

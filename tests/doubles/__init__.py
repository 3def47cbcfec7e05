"""Doubles of NVIDIA's libraries, and workload programs whose truth is known."""

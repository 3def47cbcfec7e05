"""Inference engines: what their recorded metrics say, by windows, and what follows from it."""

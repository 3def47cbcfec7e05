"""Sources → recorder → bundle, on the restricted host."""

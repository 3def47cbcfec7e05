"""Charts of the report: each module lays out one kind of figure exactly, in Python; a template only prints it."""

"""Recordings made by others, brought into a sealed bundle that says so: IMPORTED, with the digests of the originals.

One module per format, each with a :class:`gpuaudit.capture.importers.model.Format`; ``run`` chooses by content.
"""

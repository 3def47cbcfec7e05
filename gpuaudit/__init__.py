"""GPU Audit: offline, signed evidence of what a GPU host really did.

The stages live in folders of their own at the root of the source tree and are linked into this one import package
(``docs/decisions/0001-layout.md``). Import ``gpuaudit.bundle``, ``gpuaudit.capture``, ``gpuaudit.analyze``,
``gpuaudit.report``; nothing is imported here, so that ``audit verify`` never loads what it does not need.
"""

__version__ = "0.1.0"

"""Sections of the findings document, one file each: ``ID``, ``TITLE``, ``QUESTION`` and ``evaluate(context)``.

Whatever module lies here is found by :mod:`gpuaudit.analyze.registry`; its ``ORDER`` says where it stands.
"""

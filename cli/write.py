"""Write one output file: all of it or nothing, and nothing over other content without being told."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gpuaudit.bundle.errors import OutputExists


def write_output(path: Path, data: bytes, *, force: bool) -> None:
    """Write ``data`` to ``path`` through a temporary file beside it.

    Identical bytes there already are not a conflict, and are left alone. Other content raises OutputExists unless
    ``force``. OSError carries the path, so that the command line can name it.
    """
    if path.exists() and not force:
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
        raise OutputExists(
            f"{path} exists with other content", hint="use --force to replace it, or --out for elsewhere"
        )
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

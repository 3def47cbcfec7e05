"""Reading a PDF for checking: pyHanko's strict reader, with object streams indexed once.

pyHanko reads the head of an object stream again for every object in it; WeasyPrint writes one stream with tens of
thousands of objects, so that a full walk took minutes. Here the head is read once, as strictly.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from pyhanko.pdf_utils import generic
from pyhanko.pdf_utils.misc import PdfStrictReadError
from pyhanko.pdf_utils.reader import PdfFileReader

MOST_OBJECTS = 2_000_000
"""Objects looked at before giving up: a report of 1,000 pages has about 300,000."""

MOST_STREAM_BYTES = 256 << 20
"""Largest object stream read: a report of 1,000 pages has about 40 MB of objects."""


class StrictReader(PdfFileReader):
    """A strict reader that keeps each object stream, parsed up to the places of its objects."""

    def __init__(self, pdf: bytes) -> None:
        super().__init__(BytesIO(pdf), strict=True)
        self._streams: dict[int, tuple[BytesIO, list[tuple[int, int]]]] = {}

    def _get_object_from_stream(self, idnum: int, stmnum: int, idx: int) -> Any:
        if stmnum not in self._streams:
            self._streams[stmnum] = self._index(stmnum)
        body, places = self._streams[stmnum]
        if not 0 <= idx < len(places) or places[idx][0] != idnum:
            raise PdfStrictReadError(f"object {idnum} is not at place {idx} of object stream {stmnum}")
        body.seek(places[idx][1])
        made = generic.read_object(body, generic.Reference(idnum, 0, self))
        if isinstance(made, generic.StreamObject | generic.IndirectObject):
            raise PdfStrictReadError(f"object {idnum} may not stand in an object stream")
        return made

    def _index(self, stmnum: int) -> tuple[BytesIO, list[tuple[int, int]]]:
        """Bytes of an object stream, and number and place of each object in it (ISO 32000-2, 7.5.7)."""
        stream = generic.Reference(stmnum, 0, self).get_object()
        if not isinstance(stream, generic.StreamObject) or stream["/Type"] != "/ObjStm":
            raise PdfStrictReadError(f"object {stmnum} is not an object stream")
        data = stream.data
        first, count = int(stream["/First"]), int(stream["/N"])
        if len(data) > MOST_STREAM_BYTES or not 0 <= count <= MOST_OBJECTS or not 0 <= first <= len(data):
            raise PdfStrictReadError(f"object stream {stmnum} is out of bounds")
        numbers = [int(n) for n in data[:first].split()]
        if len(numbers) != 2 * count:
            raise PdfStrictReadError(f"object stream {stmnum} names {len(numbers) // 2} objects, not {count}")
        return BytesIO(data), [(n, first + at) for n, at in zip(numbers[::2], numbers[1::2], strict=True)]


def dictionaries(reader: PdfFileReader) -> list[Any]:
    """Every dictionary that can be reached from the trailer, each once."""
    found: list[Any] = []
    stack: list[Any] = [reader.trailer_view]
    seen: set[tuple[int, int]] = set()
    while stack:
        item = stack.pop()
        if isinstance(item, generic.IndirectObject):
            key = (item.idnum, item.generation)
            if key in seen:
                continue
            seen.add(key)
            item = item.get_object()  # type: ignore[no-untyped-call]
        if isinstance(item, generic.DictionaryObject):
            found.append(item)
            stack += [item.raw_get(k) for k in item]
        elif isinstance(item, generic.ArrayObject):
            stack += [item.raw_get(i) for i in range(len(item))]
        if len(found) > MOST_OBJECTS or len(seen) > MOST_OBJECTS:
            raise ValueError(f"more than {MOST_OBJECTS} objects")
    return found

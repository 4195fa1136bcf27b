"""The lines of a training file, as bytes: cut out of a stream in bounded memory, and what shows at first sight."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from app.contracts.datasets import LineCode, LineProblem

BOM = b"\xef\xbb\xbf"
_MAGIC = (
    (b"\xff\xfe", "The file is UTF-16", "Save the file as UTF-8."),
    (b"\xfe\xff", "The file is UTF-16", "Save the file as UTF-8."),
    (b"\x1f\x8b", "The file is compressed with gzip", "Upload the uncompressed file."),
    (b"PK\x03\x04", "The file is a zip archive or a spreadsheet", "Upload the JSON Lines text itself."),
    (b"\x28\xb5\x2f\xfd", "The file is compressed with zstd", "Upload the uncompressed file."),
)


class Lines(NamedTuple):
    """Some lines of a file, one at least."""

    block: bytes
    """With a line feed between one and the next. Nothing is left of those that are too long."""
    too_long: frozenset[int]
    """Which ones of them are."""

    def split(self) -> list[bytes | None]:
        """The lines; None: one that is too long."""
        lines = self.block.split(b"\n")
        if not self.too_long:
            return list(lines)
        return [None if index in self.too_long else line for index, line in enumerate(lines)]


class LineSplitter:
    """Cuts a stream at line feeds. A line over the limit is never held whole."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Lines | None:
        """The lines that `data` completes."""
        place = data.rfind(b"\n")
        lines = None
        if place >= 0:
            lines = self._lines(memoryview(data)[:place])
            self._pieces, self._size = [], 0
        self._append(data[place + 1 :])
        return lines

    def finish(self) -> Lines | None:
        """The last line, if it had no line feed."""
        return self._lines(memoryview(b"")) if self._size else None

    def too_long(self, number: int) -> LineProblem:
        """What is wrong with line `number`, which is too long."""
        what = f"the line is longer than {self._max_line_bytes} bytes"
        fix = "Split the conversation; check that line feeds are not missing."
        return LineProblem(line=number, path="", code=LineCode.LINE_TOO_LONG, message=what, fix=fix)

    def _append(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max_line_bytes:
            self._pieces.clear()
        elif part:
            self._pieces.append(part)

    def _lines(self, whole: memoryview) -> Lines:
        """Whole lines, after what is kept of the first."""
        if self._size + len(whole) <= self._max_line_bytes:
            return Lines(b"".join([*self._pieces, whole]), frozenset())
        first, *others = bytes(whole).split(b"\n")
        self._append(first)
        first = b"".join(self._pieces)
        too_long = {index for index, line in enumerate(others, start=1) if len(line) > self._max_line_bytes}
        if self._size > self._max_line_bytes:
            too_long.add(0)
        kept = [b"" if index in too_long else line for index, line in enumerate([first, *others])]
        return Lines(b"\n".join(kept), frozenset(too_long))


def lines_of(path: Path, splitter: LineSplitter) -> Iterator[bytes | None]:
    """All lines of a file."""
    with path.open("rb") as file:
        while piece := file.read(1 << 16):
            if lines := splitter.feed(piece):
                yield from lines.split()
    if lines := splitter.finish():
        yield from lines.split()


def other_kind(line: bytes) -> LineProblem | None:
    """What is wrong with a file whose first line shows that it is not JSON Lines at all."""
    for magic, what, fix in _MAGIC:
        if line.startswith(magic):
            return LineProblem(line=1, path="", code=LineCode.NOT_UTF8, message=what, fix=fix)
    if b"\x00" in line[:64]:
        what, fix = "the file is binary, or text in UTF-16 or UTF-32", "Save the file as UTF-8 text."
        return LineProblem(line=1, path="", code=LineCode.NOT_UTF8, message=what, fix=fix)
    start = line.strip()
    if start == b"{" or (start.startswith(b"[") and start != b"[]"):
        what = "the file is one JSON document, not JSON Lines"
        fix = "Write each conversation as one object on a line of its own, without an array around them."
        return LineProblem(line=1, path="", code=LineCode.NOT_JSONL, message=what, fix=fix)
    return None

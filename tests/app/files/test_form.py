"""The file inside a form is the same however the body comes in pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from python_multipart.multipart import MultipartParser
from starlette.datastructures import Headers

from app.files.form import FileForm

BOUNDARY = "b0undary"
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
PURPOSE = f'\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{"p" * 100}'.encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()


def received(body: bytes, sizes: list[int]) -> tuple[bytes, dict[str, str]]:
    """The file and the fields of a body that comes in pieces of these sizes, then one after the other of the last."""
    pieces: list[bytes] = []
    headers = Headers({"content-type": f"multipart/form-data; boundary={BOUNDARY}"})
    form = FileForm(headers, file_field="file", fields=("purpose",), max_file_bytes=1_000_000, on_file=pieces.append)
    place = 0
    while place < len(body):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        form.feed(body[place : place + size])
        place += size
    assert form.finish() == "a"
    return b"".join(pieces), form.fields


texts = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"\r\n--", b"\r\n--b0und", b"--b0undary", b"x", b"y" * 90, b"z" * 300]),
    max_size=12,
).map(b"".join)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(texts, st.lists(st.integers(1, 120), min_size=1, max_size=20))
def test_in_any_pieces(data: bytes, sizes: list[int]) -> None:
    if b"\r\n--b0undary" not in data:
        assert received(HEAD + data + PURPOSE + END, sizes) == (data, {"purpose": "p" * 100})


def test_the_parser_is_not_asked_about_what_can_have_no_delimiter(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    write = MultipartParser.write

    def noted(self: MultipartParser, data: bytes) -> int:
        parsed.append(data)
        return write(self, data)

    monkeypatch.setattr(MultipartParser, "write", noted)
    data = b"x" * 10_000
    assert received(HEAD + data + END, [len(HEAD) + 1000, 1000]) == (data, {})
    assert len(parsed) == 2

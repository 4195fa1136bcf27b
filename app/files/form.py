"""A multipart form with one file in it, read in pieces: fields are kept, the file's bytes go on as they come."""

from collections.abc import Callable, Mapping

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from app.errors import InvalidRequestError, ServiceError, TooLargeError
from app.projects.quotas import no_room

FORM_OVERHEAD_BYTES = 64 * 1024
"""What a form may hold beside its file."""
MAX_FIELD_BYTES = 1024
MAX_PARTS = 8
MAX_FILENAME_CHARACTERS = 255
_MAX_BOUNDARY_CHARACTERS = 70
_LONGEST_DELIMITER = _MAX_BOUNDARY_CHARACTERS + 8
"""With its line breaks and hyphens."""


class FileForm:
    """Takes the body of one request.

    Args:
        headers: Of the request; what they alone show to be wrong is refused before a byte of the body is read.
        file_field: Name of the field that is the file.
        fields: Names of the others.
        max_file_bytes: The file may have.
        room_bytes: The project may store; None: as much as it likes.
        on_file: Called with each piece of the file.

    Raises:
        ServiceError: The headers are not those of such a form.
    """

    def __init__(
        self,
        headers: Headers,
        *,
        file_field: str,
        fields: tuple[str, ...] = (),
        max_file_bytes: int,
        room_bytes: int | None = None,
        on_file: Callable[[bytes], None],
    ) -> None:
        self._file_field = file_field
        self._names = fields
        has_less_room = room_bytes is not None and room_bytes < max_file_bytes
        self._max_file_bytes = room_bytes if room_bytes is not None and has_less_room else max_file_bytes
        self._has_less_room = has_less_room
        self._on_file = on_file
        boundary = self._boundary(headers)
        self.fields: dict[str, str] = {}
        """What came so far."""
        self.filename: str | None = None
        """As the client says; None while no file has come."""
        self.num_file_bytes = 0
        self._num_body_bytes = 0
        self._num_parts = 0
        self._part_name: str | None = None
        self._part_data = bytearray()
        self._part_headers: dict[str, str] = {}
        self._header = (bytearray(), bytearray())
        self._is_complete = False
        self._num_since_return = 0
        """Bytes that came after the last carriage return."""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Takes the next piece of the body.

        Raises:
            ServiceError: The form is not acceptable; the rest need not be read.
        """
        self._num_body_bytes += len(data)
        if self._num_body_bytes > self._max_file_bytes + FORM_OVERHEAD_BYTES:
            raise self._too_large()
        if self._is_file_alone(data):
            self._on_part_data(data, 0, len(data))
        else:
            try:
                self._parser.write(data)
            except FormParserError as error:
                raise InvalidRequestError("The body is not valid multipart/form-data.", code="invalid_form") from error
        place = data.rfind(b"\r")
        self._num_since_return = self._num_since_return + len(data) if place == -1 else len(data) - place - 1

    def finish(self) -> str:
        """Checks what only the end shows.

        Returns:
            The file's name.

        Raises:
            InvalidRequestError: The form is cut off, or has no file.
        """
        if not self._is_complete:
            raise InvalidRequestError("The body ends in the middle of the form: send it again.", code="invalid_form")
        if self.filename is None:
            what, name = f"Missing required parameter: {self._file_field}", self._file_field
            raise InvalidRequestError(what, param=name, code="missing_required_parameter")
        return self.filename

    def _is_file_alone(self, data: bytes) -> bool:
        """Whether the parser would find nothing in `data`, for which it takes a tenth of an upload's time: a delimiter
        begins with a carriage return, and none has come for longer than a delimiter is."""
        is_inside = self._part_name == self._file_field and self._num_since_return > _LONGEST_DELIMITER
        return is_inside and b"\r" not in data

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidRequestError("The form has too many parts.", code="invalid_form")
        self._part_headers = {}
        self._part_data = bytearray()

    def _on_header_end(self) -> None:
        name, value = (bytes(part).decode("latin-1") for part in self._header)
        self._part_headers[name.lower()] = value
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._part_headers.get("content-disposition", ""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name:
            raise InvalidRequestError("A part of the form has no name.", code="invalid_form")
        encoding = self._part_headers.get("content-transfer-encoding", "binary").strip().lower()
        if encoding not in ("7bit", "8bit", "binary"):
            raise InvalidRequestError("Content-Transfer-Encoding is not supported.", param=name, code="invalid_form")
        if name == self._file_field:
            self._begin_file(options)
        elif name not in self._names:
            raise InvalidRequestError(f"Unknown parameter: {name[:64]}", param=name[:64], code="unknown_parameter")
        elif name in self.fields:
            raise InvalidRequestError(f"{name} is given twice.", param=name)
        self._part_name = name

    def _begin_file(self, options: Mapping[bytes, bytes]) -> None:
        name = self._file_field
        if self.filename is not None:
            raise InvalidRequestError("Send one file a request.", param=name)
        filename = options.get(b"filename", b"").decode("utf-8", "replace")
        if not filename:
            what = f"The part `{name}` has no filename: send it as a file."
            raise InvalidRequestError(what, param=name)
        check_filename(filename, name)
        self.filename = filename

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._part_name != self._file_field:
            self._part_data.extend(piece)
            if len(self._part_data) > MAX_FIELD_BYTES:
                raise InvalidRequestError(f"{self._part_name} is too long.", param=self._part_name)
            return
        self.num_file_bytes += len(piece)
        if self.num_file_bytes > self._max_file_bytes:
            raise self._too_large()
        self._on_file(piece)

    def _on_part_end(self) -> None:
        if self._part_name is not None and self._part_name != self._file_field:
            self.fields[self._part_name] = self._part_data.decode("utf-8", "replace")
        self._part_name = None

    def _on_end(self) -> None:
        self._is_complete = True

    def _boundary(self, headers: Headers) -> bytes:
        kind, options = parse_options_header(headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            what = f"Send {self._file_field} as multipart/form-data."
            raise InvalidRequestError(what, param=self._file_field, code="invalid_form")
        if len(boundary) > _MAX_BOUNDARY_CHARACTERS:
            what = f"The form's boundary is longer than {_MAX_BOUNDARY_CHARACTERS} characters."
            raise InvalidRequestError(what, code="invalid_form")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_file_bytes + FORM_OVERHEAD_BYTES:
            raise self._too_large()
        return boundary

    def _too_large(self) -> ServiceError:
        if self._has_less_room:
            return no_room(self._max_file_bytes, self._file_field)
        what = f"The file is larger than {self._max_file_bytes} bytes."
        return TooLargeError(what, param=self._file_field, code="file_too_large")


def check_filename(filename: str, param: str) -> None:
    """Raises InvalidRequestError for a name that could not be shown."""
    if len(filename) > MAX_FILENAME_CHARACTERS or not filename.isprintable():
        what = f"The filename has more than {MAX_FILENAME_CHARACTERS} characters, or unprintable ones."
        raise InvalidRequestError(what, param=param)

"""A file of records as JSON lines, a record each, whatever its packing and framing."""

import io
import tempfile
from collections.abc import Iterator
from typing import IO, cast

from c360_pipeline.core.landing.framing import as_utf8, json_lines
from c360_pipeline.core.sources.records import AVRO, OF_JSON, PARQUET, Framing, message_lines, table_lines, within
from c360_pipeline.stores.s3.packed import files_in, unpacked

SPOOL_BYTES = 64 * 1024 * 1024
"""A file whose directory stands at its end is in memory up to this size, a larger one on disk."""


def record_pieces(raw: io.IOBase, framing: Framing, size: int, name: str) -> Iterator[bytes]:
    """The records of a file as JSON lines, in pieces of about `size` bytes.

    Raises:
        ContractError: it is damaged, or no such file; after the records before.
    """
    if framing.is_of_messages:
        yield from message_lines(iter(lambda: raw.read(size), b""), framing)
        return
    if framing.kind in OF_JSON:
        lines = json_lines(unpacked(raw, size, name), name)
        yield from within(lines, framing) if framing.records else lines
        return
    # Each table of a zip file has a header, or a directory, of its own.
    for inner, pieces in files_in(raw, size, name):
        if framing.kind in (PARQUET, AVRO):
            with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as file:
                for piece in pieces:
                    file.write(piece)
                file.seek(0)
                yield from table_lines(cast("IO[bytes]", file), framing, inner)
        else:
            yield from table_lines(_stream(iter(as_utf8(pieces, inner))), framing, inner)


class _Pieces(io.RawIOBase):
    """Pieces as a file that is read from its start to its end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # the buffer that io hands on
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def as_file(pieces: Iterator[bytes]) -> io.RawIOBase:
    """Pieces as a file that is read from its start to its end."""
    return _Pieces(pieces)


def _stream(pieces: Iterator[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", io.BufferedReader(_Pieces(pieces)))

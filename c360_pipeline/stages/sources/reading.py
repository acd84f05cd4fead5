"""Records of a file on this machine, as landing reads them from S3."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from c360_pipeline.core.landing.framing import json_lines
from c360_pipeline.core.sources.records import OF_JSON, PARQUET, AVRO, Framing, table_lines, within
from c360_pipeline.stores.s3.packed import unpacked

PIECE_BYTES = 1024 * 1024


def record_lines(path: Path, framing: Framing) -> Iterator[bytes]:
    """The records of a file, a JSON line each, without line ends; blank ones are left out.

    Raises:
        ContractError: it is damaged, or no such file; after the records before.
        FileNotFoundError: it is not there.
    """
    carried = b""
    for piece in _pieces(path, framing):
        whole, newline, carried = (carried + piece).rpartition(b"\n")
        if newline:
            yield from (line for line in whole.split(b"\n") if line.strip())
    if carried.strip():
        yield carried


def _pieces(path: Path, framing: Framing) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        if framing.kind in (PARQUET, AVRO):
            lines = table_lines(file, framing, path.name)
        else:
            content = unpacked(_Pieces(iter(lambda: file.read(PIECE_BYTES), b"")), PIECE_BYTES, path.name)
            is_json = framing.kind in OF_JSON
            lines = json_lines(content, path.name) if is_json else table_lines(_stream(content), framing, path.name)
        yield from within(lines, framing) if framing.records else lines


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


def _stream(pieces: Iterator[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", io.BufferedReader(cast("io.RawIOBase", _Pieces(pieces))))

"""Packed files, recognised by their first bytes: gzip, bzip2, xz, zstd, lz4 and zip, also one in the other."""

import bz2
import gzip
import io
import lzma
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, cast

import pyarrow as pa

from c360_pipeline.errors import ContractError

MOST_LAYERS = 4
"""More are no mistake of a producer any more, but a trap."""
SPOOL_BYTES = 16 * 1024 * 1024
"""A zip file up to this size is in memory, a larger one on disk: its directory stands at its end."""
BUFFER_BYTES = 1024 * 1024


def _zstd(raw: io.IOBase) -> IO[bytes]:
    return cast("IO[bytes]", pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))


def _lz4(raw: io.IOBase) -> IO[bytes]:
    return cast("IO[bytes]", pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "lz4"))


def _gzip(raw: io.IOBase) -> IO[bytes]:
    return cast("IO[bytes]", gzip.GzipFile(fileobj=cast("IO[bytes]", raw), mode="rb"))


def _bzip2(raw: io.IOBase) -> IO[bytes]:
    return cast("IO[bytes]", bz2.BZ2File(cast("IO[bytes]", raw)))


def _xz(raw: io.IOBase) -> IO[bytes]:
    return cast("IO[bytes]", lzma.LZMAFile(cast("IO[bytes]", raw)))


OPENERS: dict[bytes, tuple[str, Callable[[io.IOBase], IO[bytes]]]] = {
    b"\x1f\x8b": ("gzip", _gzip),
    b"BZh": ("bzip2", _bzip2),
    b"\xfd7zXZ\x00": ("xz", _xz),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
    b"\x04\x22\x4d\x18": ("lz4", _lz4),
}
ZIP = b"PK\x03\x04"
DAMAGES = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException, RuntimeError)
LONGEST_MAGIC = max(map(len, (*OPENERS, ZIP)))


def unpacked(raw: io.IOBase, size: int, name: str) -> Iterator[bytes]:
    """The content in pieces of at most some `size` bytes; of a damaged file, what there is before it breaks off.

    The files of a zip file come one after the other, each on lines of its own.

    Args:
        raw: the file.
        size: bytes.
        name: of the file, for messages.

    Raises:
        ContractError: it is packed and damaged, or packed too often.
    """
    last = b"\n"
    for _, pieces in files_in(raw, size, name):
        if last != b"\n":
            yield b"\n"
        for piece in pieces:
            yield piece
            last = piece[-1:] or last


def files_in(raw: io.IOBase, size: int, name: str, layers: int = 0) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The files that a file holds, itself if it is no zip file: name, and content to be read before the next is taken.

    Args:
        raw: the file.
        size: bytes of a piece of content, at most some.
        name: of the file, for messages.
        layers: that were taken off already.

    Raises:
        ContractError: it is packed and damaged, or packed too often; the pieces of its content may raise it, too.
    """
    stream = io.BufferedReader(cast("io.RawIOBase", raw), buffer_size=BUFFER_BYTES)
    start = stream.peek(LONGEST_MAGIC)[:LONGEST_MAGIC]
    found = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
    if found is None and not start.startswith(ZIP):
        if isinstance(raw, _Readable):
            yield name, _pieces(chain([stream.read1(BUFFER_BYTES)], iter(lambda: raw.some(size), b"")), size)
        else:
            yield name, iter(lambda: stream.read(size), b"")
        return
    if layers == MOST_LAYERS:
        raise ContractError(f"{name} is packed more than {MOST_LAYERS} times. Have its producer pack it once.")
    what, opener = found or ("zip", None)
    with _whole(what, name):
        inner = _members(stream, size, name, layers) if opener is None else files_in(
            _Readable(opener(stream)), size, name, layers + 1
        )  # fmt: skip
        for file, pieces in inner:
            yield file, _undamaged(what, name, pieces)


@contextmanager
def _whole(what: str, name: str) -> Iterator[None]:
    """Say of a damaged file what it is."""
    try:
        yield
    except (*DAMAGES, OSError) as error:
        raise ContractError(f"{name} is not a whole {what} file: {error}. Ask its producer to send it again.") from None


def _undamaged(what: str, name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    with _whole(what, name):
        yield from pieces


def _pieces(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """What a packed file holds; where it breaks off, what there is before comes first."""
    gathered: list[bytes] = []
    length = 0
    try:
        for chunk in chunks:
            gathered.append(chunk)
            length += len(chunk)
            if length >= size:
                yield b"".join(gathered)
                gathered, length = [], 0
    except (*DAMAGES, OSError):
        yield b"".join(gathered)
        raise
    yield b"".join(gathered)


def reader(pieces: Iterator[bytes]) -> io.BufferedReader:
    """Pieces as a file that is read from its start to its end."""
    return io.BufferedReader(_Pieces(pieces), buffer_size=BUFFER_BYTES)


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Take of the piece at hand, or the next that is not empty."""
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


class _Readable(io.RawIOBase):
    """An unpacking stream as a raw one, which hands out what it has before an error."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)

    def readable(self) -> bool:
        """It is."""
        return True

    def some(self, size: int) -> bytes:
        """As much as comes at once: read() would lose what it has gathered when the stream breaks off."""
        return self._read(size)

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Read as much as comes at once."""
        piece = self._read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _members(stream: IO[bytes], size: int, name: str, layers: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The files of a zip file."""
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        while piece := stream.read(BUFFER_BYTES):
            spool.write(piece)
        spool.seek(0)
        with zipfile.ZipFile(cast("IO[bytes]", spool)) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as member:
                        yield from files_in(_Readable(member), size, f"{name}, {info.filename}", layers + 1)

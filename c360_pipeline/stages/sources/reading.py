"""Records of a file on this machine, as landing reads them from S3."""

from collections.abc import Iterator
from pathlib import Path

from c360_pipeline.core.sources.records import Framing
from c360_pipeline.stores.s3.records import as_file, record_pieces

PIECE_BYTES = 1024 * 1024


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file, by which some forms show."""
    with path.open("rb") as file:
        return file.read(count)


def record_lines(path: Path, framing: Framing) -> Iterator[bytes]:
    """The records of a file, a JSON line each, without line ends; blank ones are left out.

    Raises:
        ContractError: it is damaged, or no such file; after the records before.
        FileNotFoundError: it is not there.
    """
    carried = b""
    with path.open("rb") as file:
        content = as_file(iter(lambda: file.read(PIECE_BYTES), b""))
        for piece in record_pieces(content, framing, PIECE_BYTES, path.name):
            whole, newline, carried = (carried + piece).rpartition(b"\n")
            if newline:
                yield from (line for line in whole.split(b"\n") if line.strip())
    if carried.strip():
        yield carried

"""Records of a file on this machine, as landing reads them from S3."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from c360_pipeline.core.landing.decode import PADDING
from c360_pipeline.core.landing.lines import Delivery, LineBlock, line_blocks
from c360_pipeline.core.sources.records import Framing
from c360_pipeline.stores.s3.records import as_file, record_pieces

PIECE_BYTES = 1024 * 1024


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file, by which some forms show."""
    with path.open("rb") as file:
        return file.read(count)


def record_lines(path: Path, framing: Framing) -> Iterator[bytes]:
    """The records of a file, a JSON line each, as landing has them.

    Raises:
        ContractError: it is damaged, or no such file; after the records before.
        FileNotFoundError: it is not there.
    """
    with path.open("rb") as file:
        content = as_file(iter(lambda: file.read(PIECE_BYTES), b""))
        yield from lines_of(record_pieces(content, framing, PIECE_BYTES, path.name))


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """JSON lines in pieces one by one, without what stands around them; blank ones are left out.

    Raises:
        ContractError: as `pieces` does, after everything before it was handed out.
    """
    for block in line_blocks(Delivery("", ""), pieces):
        if isinstance(block, LineBlock):
            for index in range(len(block.starts) - 1):
                if said := PADDING.sub(b"", block.line(index).raw).strip():
                    yield said

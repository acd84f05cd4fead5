"""Files cut into blocks of whole lines, each with its place."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from c360_pipeline.errors import ContractError

BOM = b"\xef\xbb\xbf"
NEWLINE = 0x0A
LONGEST_LINE_BYTES = 64 * 1024 * 1024
"""Longer lines are never in memory as a whole."""
DELIVERY = ["source_uri", "source_etag"]
PLACE = [*DELIVERY, "source_line"]


class Delivery(NamedTuple):
    """One content of one file."""

    source_uri: str
    source_etag: str


class Line(NamedTuple):
    """One line of a delivery, without its newline; `number` counts from 1, `offset` is in uncompressed bytes."""

    delivery: Delivery
    number: int
    offset: int
    raw: bytes


@dataclass(frozen=True)
class LineBlock:
    """Consecutive whole lines of one file.

    Attributes:
        delivery: the file.
        first_number: number of the first line, counted from 1.
        first_offset: where the block begins in the uncompressed file, in bytes.
        content: the lines with their newlines; the last line of a file may have none.
    """

    delivery: Delivery
    first_number: int
    first_offset: int
    content: bytes

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each line begins in `content`, and where the last one ends."""
        ends = np.flatnonzero(np.frombuffer(self.content, np.uint8) == NEWLINE) + 1
        starts = np.concatenate(([0], ends)).astype(np.int64)
        return starts if starts[-1] == len(self.content) else np.append(starts, len(self.content))

    def line(self, index: int) -> Line:
        """A line by its index in the block."""
        start, end = int(self.starts[index]), int(self.starts[index + 1])
        raw = self.content[start:end].removesuffix(b"\n")
        return Line(self.delivery, self.first_number + index, self.first_offset + start, raw)


@dataclass(frozen=True)
class LongLine:
    """A line that is too long to be held; `pieces` are its bytes, to be taken before the next block is asked for."""

    delivery: Delivery
    number: int
    offset: int
    pieces: Iterator[bytes]


def count_by_delivery(rows: pl.DataFrame) -> Counter[Delivery]:
    """Rows per delivery."""
    return Counter({Delivery(uri, etag): n for uri, etag, n in rows.group_by(DELIVERY).len().iter_rows()})


def line_blocks(delivery: Delivery, pieces: Iterable[bytes]) -> Iterator[LineBlock | LongLine]:
    """Cut a file into blocks of whole lines, about as long as the pieces that it comes in.

    Blank lines count in the numbering and for nothing else: they hold nothing that could be lost. A byte order mark
    at the start of the file is not part of its first line. Where the file breaks off, what there is of its last line
    is a line.

    Raises:
        ContractError: as `pieces` does, after everything before it was handed out.
    """
    cutter = _Cutter(delivery)
    source = iter(pieces)
    try:
        for piece in source:
            if cutter.take(piece):
                yield cutter.block()
            if len(cutter.carried) > LONGEST_LINE_BYTES:
                yield LongLine(delivery, cutter.number, cutter.offset, cutter.rest_of_line(source))
    except ContractError:
        yield from cutter.last()
        raise
    yield from cutter.last()


class _Cutter:
    """The state of `line_blocks`: where in the file it is, and what there is of the next line."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._is_start = True
        self._whole = b""
        self.number = 1
        self.offset = 0
        self.carried = b""

    def take(self, piece: bytes) -> bool:
        """Take a piece; whether there are whole lines now."""
        content = self.carried + piece
        if self._is_start and not (len(content) < len(BOM) and BOM.startswith(content)):
            self._is_start = False
            self.offset = len(BOM) if content.startswith(BOM) else 0
            content = content[self.offset :]
        end = content.rfind(b"\n") + 1
        self._whole, self.carried = content[:end], content[end:]
        return end > 0

    def block(self) -> LineBlock:
        """The whole lines."""
        block = LineBlock(self._delivery, self.number, self.offset, self._whole)
        self.number += len(block.starts) - 1
        self.offset += len(block.content)
        return block

    def rest_of_line(self, source: Iterator[bytes]) -> Iterator[bytes]:
        """The bytes of the line that has begun, up to its newline; what follows is carried on."""
        piece, self.carried = self.carried, b""
        while piece:
            line, newline, rest = piece.partition(b"\n")
            self.offset += len(line) + len(newline)
            yield line
            if newline:
                self.carried = rest
                break
            piece = next(source, b"")
        self.number += 1

    def last(self) -> Iterator[LineBlock]:
        """What there is behind the last newline."""
        if self.carried:
            yield LineBlock(self._delivery, self.number, self.offset, self.carried)


def line_in(blocks: Iterable[LineBlock], delivery: Delivery, number: int) -> Line:
    """The line of a delivery by its number, from blocks of which one holds it."""
    return next(
        block.line(number - block.first_number)
        for block in blocks
        if block.delivery == delivery and 0 <= number - block.first_number < len(block.starts) - 1
    )

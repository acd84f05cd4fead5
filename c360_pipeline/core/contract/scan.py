"""The event contract over bytes: one pass over a block of lines (compiled in `core.kernels.event_scan`).

The scanner takes what is plainly good: known fields once each, values of the right type and within their limits. It
says of every other line that it is left, good or bad; `events.parse_event` reads those and has the reasons.

Rules: RFC 8259 for JSON, RFC 3629 for UTF-8, RFC 3339 for times, Unicode Standard Annex 15 for the quick check of
composed text; a property in the tests holds the scanner to `parse_event`.
"""

import threading
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from c360_pipeline.core.kernels.event_scan import Found, Grammar, fill_views, scan_lines

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


class Scratch(threading.local):
    """Arrays of this thread that are used again: blocks are alike, and fresh memory costs more than the scan itself."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def array(self, name: str, size: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
        """An array of at least this size, holding anything."""
        held = self._arrays.get(name)
        if held is None or len(held) < size:
            held = self._arrays[name] = np.empty(size + size // 4, dtype)
        return held[:size]


scratch = Scratch()


@dataclass(frozen=True)
class Scan:
    """What was found in a block of lines. A text is one number, see `core.kernels.event_scan`; NO_TEXT is null.

    The arrays are this thread's scratch: they hold until its next scan.

    Attributes:
        block: the lines.
        buffer: the lines, and behind them the texts that do not stand in the lines as they are.
        found: of each line.
    """

    block: bytes
    buffer: Bytes
    found: Found


def scan(block: bytes, starts: Integers, grammar: Grammar, earliest: int, latest: int) -> Scan:
    """Scan a block.

    Args:
        block: the lines.
        starts: where each line begins, and where the last one ends.
        grammar: the contract.
        earliest: first allowed time, microseconds since 1970 UTC.
        latest: last allowed time.
    """
    lines, size = len(starts) - 1, len(block)
    # An attribute takes five bytes at least. A string without its escapes or with a prefix is no longer than its source
    # and the prefix; the canonical form adds quotation marks and brackets to what the line holds.
    members = size // 5 + 1
    buffer = scratch.array("buffer", 2 * size + len(grammar.extra_prefix) * members, np.uint8)
    buffer[:size] = np.frombuffer(block, np.uint8)
    status = scratch.array("status", lines, np.uint8)
    fields = scratch.array("fields", lines * len(grammar.kinds), np.int64).reshape(lines, len(grammar.kinds))
    micros, attr_ends, canonical_ends = (
        scratch.array(name, lines, np.int64) for name in ("micros", "attr_ends", "canonical_ends")
    )
    keys, values = (scratch.array(name, members, np.int64) for name in ("keys", "values"))
    canonical = scratch.array("canonical", size + (64 + 8 * len(grammar.added)) * lines + 16 * members, np.uint8)
    filled_arrays = Found(status, fields, micros, attr_ends, keys, values, canonical, canonical_ends)
    attrs, form, filled = scan_lines(buffer, starts, grammar, earliest, latest, filled_arrays)
    found = filled_arrays._replace(keys=keys[:attrs], values=values[:attrs], canonical=canonical[:form])
    return Scan(block, buffer[:filled], found)


def string_views(texts: Integers, buffer: Bytes, end_of_lines: int) -> npt.NDArray[np.int32]:
    """Arrow string views of texts, four int32 each, into the lines (0) and what stands behind them in the buffer (1).

    Null and empty are zeros. Source: Arrow columnar format, variable-size binary view layout.
    """
    views = np.zeros((len(texts), 4), np.int32)
    fill_views(texts, buffer, end_of_lines, views, views.view(np.uint8))
    return views


def is_surely_composed(text: str) -> bool:
    """Whether a text is in NFC, as far as its characters tell by themselves."""
    return all(map(composed_table().__getitem__, map(ord, text)))


@cache
def composed_table() -> npt.NDArray[np.bool_]:
    """Of each code point, whether text made of such is surely in NFC; all before U+0300 are."""
    points = [chr(point) for point in range(0x110000)]
    table = np.array([unicodedata.is_normalized("NFC", c) and not unicodedata.combining(c) for c in points])
    for character in points:
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            table[int(parts[1], 16)] = False  # it composes with what stands before it
    table[0xD800:0xE000] = False
    table[0x1161:0x1176] = table[0x11A8:0x11C3] = False  # Hangul vowels and finals compose by rule
    return table

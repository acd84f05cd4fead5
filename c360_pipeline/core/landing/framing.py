"""What producers call JSON lines, made into JSON lines: encodings and framings are recognised by the first bytes.

A file whose lines are JSON each is passed on as it is. UTF-16 and UTF-32 become UTF-8, lone carriage returns become
line ends, and values that do not stand on lines of their own (one after the other, pretty-printed, in an array, with
commas between them) are put on lines of their own. Numbers of lines count what comes out.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np

from c360_pipeline.core.kernels.json_values import new_state, values_on_lines
from c360_pipeline.errors import ContractError

PROBE_BYTES = 64 * 1024
"""Of the start of a file, by which it is judged."""
PROBED_LINES = 50
BOMS = ((codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"))  # fmt: skip
FOREIGN = ((b"PAR1", "a Parquet file"), (b"Obj\x01", "an Avro file"), (b"ORC", "an ORC file"),
           (b"SQLite format 3", "a SQLite database"), (b"%PDF", "a PDF document"), (b"\x89PNG", "a picture"),
           (b"\xff\x06\x00\x00sNaPpY", "a Snappy file"))  # fmt: skip
"""First bytes of what is no text."""


def json_lines(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    """A file as JSON lines in UTF-8.

    Args:
        pieces: the file, unpacked; read as far as they are asked for.
        name: of the file, for messages.

    Raises:
        ContractError: it is no text, or breaks off in the middle of a character; after what could be read.
    """
    start, _, rest = _probe(iter(pieces))
    head = b"".join(start)
    for magic, what in FOREIGN:
        if head.startswith(magic):
            raise ContractError(
                f"{name} is {what}. Landing reads JSON lines, one event a line: have its producer write these."
            )
    start, is_whole, rest = _probe(as_utf8(chain(start, rest), name))
    probe = b"".join(start)
    content: Iterator[bytes] = chain(start, rest)
    if b"\n" not in probe and b"\r" in probe:
        content = (piece.replace(b"\r", b"\n") for piece in content)
        probe = probe.replace(b"\r", b"\n")
    yield from content if _are_lines(probe, is_whole=is_whole) else _separated(content)


def as_utf8(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The same bytes, or where they are UTF-16 or UTF-32, the same text in UTF-8.

    Raises:
        ContractError: the text breaks off in the middle of a character, or is none; after what could be read.
    """
    start, _, rest = _probe(iter(pieces))
    content = chain(start, rest)
    encoding = _encoding(b"".join(start))
    yield from _decoded(content, encoding, name) if encoding else content


def _probe(source: Iterator[bytes]) -> tuple[list[bytes], bool, Iterator[bytes]]:
    """The start of a file, in the pieces that it comes in; whether it is the whole; and the rest.

    A file that breaks off in its start does so when the rest is read: what there is of it comes first.
    """
    gathered: list[bytes] = []
    try:
        while sum(map(len, gathered)) < PROBE_BYTES:
            piece = next(source, None)
            if piece is None:
                return gathered, True, source
            gathered.append(piece)
    except ContractError as error:
        return gathered, True, _breaking_off(error)
    return gathered, False, source


def _breaking_off(error: ContractError) -> Iterator[bytes]:
    raise error
    yield b""


def _encoding(probe: bytes) -> str | None:
    """The encoding of a file that is not UTF-8 and shows it."""
    for bom, encoding in BOMS:
        if probe.startswith(bom):
            return encoding
    start = np.frombuffer(probe[: 1024 & ~1], np.uint8)
    start = start[: len(start) & ~1]
    if len(start) < 4:
        return None
    # Of text in UTF-16 every second byte is zero but for what is no Latin letter.
    even, odd = float((start[0::2] == 0).mean()), float((start[1::2] == 0).mean())
    if max(even, odd) < 0.4 or min(even, odd) > 0.1:
        return None
    return "utf-16-be" if even > odd else "utf-16-le"


def _decoded(pieces: Iterable[bytes], encoding: str, name: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for piece in pieces:
            yield decoder.decode(piece).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise ContractError(
            f"{name} begins as {encoding.upper()} and does not go on so ({error}). Have its producer write UTF-8."
        ) from None


def _are_lines(probe: bytes, *, is_whole: bool) -> bool:
    """Whether most lines at the start of a file are values of their own, or its values are no better."""
    lines = [line for line in probe.lstrip(codecs.BOM_UTF8).split(b"\n") if line.strip(b" \t\r\0")]
    if not is_whole and len(lines) > 1:
        lines.pop()
    lines = lines[:PROBED_LINES]
    alone = sum(_is_event(line) for line in lines)
    if not lines or alone * 2 >= len(lines):
        return True
    values = [value for value in b"".join(_separated([probe])).split(b"\n") if value.strip()]
    if not is_whole and len(values) > 1:
        values.pop()
    whole = sum(_is_event(value) for value in values)
    return not whole or whole * 2 < len(values)


def _is_event(line: bytes) -> bool:
    """Whether a line is one JSON value; a list of objects is several."""
    try:
        value = json.loads(line.strip(codecs.BOM_UTF8 + b"\0 \t\r"))
    except (ValueError, RecursionError):
        return False
    return not (isinstance(value, list) and value and all(isinstance(one, dict) for one in value))


def _separated(pieces: Iterable[bytes]) -> Iterator[bytes]:
    state = new_state()
    is_start = True
    for piece in pieces:
        content = piece.removeprefix(codecs.BOM_UTF8) if is_start else piece
        is_start = is_start and not piece
        out = np.empty(3 * len(content) + 2, np.uint8)
        written = values_on_lines(np.frombuffer(content, np.uint8), state, out)
        yield out[:written].tobytes()

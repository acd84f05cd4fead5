"""Frames put together, so that what is done with each pays."""

from collections.abc import Iterable, Iterator

import polars as pl


def gathered(frames: Iterable[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """Frames of one schema put together until they hold at least so many rows; the last holds what is left."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(part.height for part in held) >= rows:
            yield pl.concat(held)
            held = []
    if held:
        yield pl.concat(held)

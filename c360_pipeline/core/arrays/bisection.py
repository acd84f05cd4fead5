"""A batch of which one row is refused: its halves are written, down to the row, so that the others get through."""

from collections.abc import Callable, Iterator
from typing import Protocol, Self, TypeVar


class Rows(Protocol):
    """A list, or a frame."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Self: ...


R = TypeVar("R", bound=Rows)


def bisected(
    rows: R, write: Callable[[R], object], is_of_a_row: Callable[[Exception], bool]
) -> Iterator[tuple[R, Exception]]:
    """Write rows; halves of them where one is refused, down to the row.

    Args:
        rows: at least one.
        write: writes rows, all or none.
        is_of_a_row: whether an error is the fault of one of the rows.

    Yields:
        Each refused row alone, and why; the others are written once this is exhausted.

    Raises:
        Exception: what `write` raises that is not the fault of a row.
    """
    try:
        write(rows)
    except Exception as error:
        if not is_of_a_row(error):
            raise
        if len(rows) == 1:
            yield rows, error
            return
    else:
        return
    middle = len(rows) // 2
    yield from bisected(rows[:middle], write, is_of_a_row)
    yield from bisected(rows[middle:], write, is_of_a_row)

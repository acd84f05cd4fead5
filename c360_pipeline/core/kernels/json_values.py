"""JSON values that do not stand on lines of their own, put on lines of their own."""

import numba as nb
import numpy as np
import numpy.typing as npt


def new_state() -> npt.NDArray[np.int64]:
    """The state at the start of a file.

    Open brackets of the value at hand (-1: it has none), whether a string is open in it, whether the next byte is
    escaped, whether it is the first of a line.
    """
    return np.array([0, 0, 0, 1], np.int64)


@nb.njit(nogil=True, cache=True)
def values_on_lines(content, state, out):
    """Write the values of a piece one a line; those of an array at the top count each.

    What stands between values (blanks, commas, the brackets of the array) goes; line ends inside of a value become
    blanks. A bracket at the very start of a line begins a new value, whatever was open: so one that broke off takes no
    other along.

    Args:
        content: the piece.
        state: as the piece before left it; changed.
        out: at least three bytes for each of the piece's.

    Returns:
        Bytes written.
    """
    depth, in_string, is_escaped, at_start = state[0], state[1], state[2], state[3]
    n = 0
    for byte in content:
        opens = byte == 0x7B or byte == 0x5B
        if at_start and opens and depth > 0:
            out[n] = 0x0A
            n += 1
            depth, in_string, is_escaped = 0, 0, 0
        at_start = 1 if byte == 0x0A else 0
        if depth == 0:
            if byte == 0x7B:
                depth = 1
                out[n] = byte
                n += 1
            elif not (byte <= 0x20 or byte == 0x2C or byte == 0x5B or byte == 0x5D):
                # A value that is neither object nor array, or what is no JSON: up to the next line or comma.
                depth = -1
                out[n] = byte
                n += 1
            continue
        if depth < 0:
            if byte == 0x0A or byte == 0x2C or byte == 0x7B:
                out[n] = 0x0A
                n += 1
                depth = 0
                if byte == 0x7B:
                    depth = 1
                    out[n] = byte
                    n += 1
            else:
                out[n] = byte
                n += 1
            continue
        out[n] = 0x20 if byte == 0x0A or byte == 0x0D else byte
        n += 1
        if in_string:
            if is_escaped:
                is_escaped = 0
            elif byte == 0x5C:
                is_escaped = 1
            elif byte == 0x22:
                in_string = 0
        elif byte == 0x22:
            in_string = 1
        elif opens:
            depth += 1
        elif byte == 0x7D or byte == 0x5D:
            depth -= 1
            if depth == 0:
                out[n] = 0x0A
                n += 1
    state[0], state[1], state[2], state[3] = depth, in_string, is_escaped, at_start
    return n

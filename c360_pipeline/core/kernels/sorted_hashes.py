"""Looking for many hashes in many sorted hashes, compiled: both sides are walked once."""

import numba as nb
import numpy as np


@nb.njit(nogil=True, cache=True)
def find_sorted(held, wanted):
    """Where each of some sorted hashes stands in an array of sorted hashes.

    The place of one is looked for from the place of the one before, in growing steps and then by halving.

    Args:
        held: sorted, may hold a hash several times.
        wanted: sorted.

    Returns:
        Of each wanted hash its first place, and how often it is there.
    """
    first = np.zeros(len(wanted), np.int64)
    count = np.zeros(len(wanted), np.int64)
    low = 0
    for i in range(len(wanted)):
        step = 1
        high = low
        while high < len(held) and held[high] < wanted[i]:
            low = high + 1
            high += step
            step *= 2
        high = min(high, len(held))
        while low < high:
            middle = (low + high) // 2
            if held[middle] < wanted[i]:
                low = middle + 1
            else:
                high = middle
        first[i] = low
        at = low
        while at < len(held) and held[at] == wanted[i]:
            at += 1
        count[i] = at - low
    return first, count


@nb.njit(nogil=True, cache=True)
def copy_texts(held, starts, lengths, into, places):
    """Copy texts, one after the other.

    Args:
        held: bytes of many texts.
        starts: where each that is wanted begins.
        lengths: its bytes.
        into: bytes that they are written to; changed.
        places: where in these.
    """
    for i in range(len(starts)):
        for n in range(lengths[i]):
            into[places[i] + n] = held[starts[i] + n]

"""The compiled functions of `core.contract.scan`: they read a block of lines byte by byte.

One file, though it is long: numba keeps compiled code by the file that a function stands in, and does not see when a
function of another file, that it calls, has changed.

Numbers are character codes of ASCII and code points of Unicode where bytes are compared. A function that reads a part
of a line returns the place after it, or -1 when the line is left to `events.parse_event`.

A text is one number, its offset in the buffer and its length (`text_of`). The buffer holds the lines and behind them
room for texts that do not stand in the lines as they are: strings with escapes, names that get a prefix.
"""

from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

BLANK, GOOD, LEFT = 0, 1, 2
STRING, TIMESTAMP, ATTRIBUTES, BESIDE = 0, 1, 2, 3
NO_TEXT = -1
LENGTH_BITS = 24

_MAX_MEMBERS = 256
_MOST_DIGITS = 40
_LENGTH = (1 << LENGTH_BITS) - 1
_TRUE, _FALSE, _NULL = (np.frombuffer(word, np.uint8) for word in (b"true", b"false", b"null"))
_PLAIN = np.array([32 <= c < 128 and c not in b'"\\' for c in range(256)])
"""Of each byte, whether it stands for itself in a JSON string and is ASCII."""
_compiled = nb.njit(nogil=True, cache=True)
_inlined = nb.njit(nogil=True, cache=True, inline="always")
"""For functions that take whole groups of arrays, which a call would copy and count references of."""


class Grammar(NamedTuple):
    """What the scanner knows of the contract.

    Attributes:
        names: one row per field, its name padded with zeros.
        name_lengths: bytes of each name.
        kinds: STRING, TIMESTAMP, ATTRIBUTES of each field, or BESIDE: a line that has a value there is left.
        required: whether each field must be there.
        either: fields of which one must have a text; none where any will do.
        blank_refused: whether a string of each field must hold more than whitespace when it is there.
        hash_order: fields in the order of the canonical form; the timestamp and the attributes are among them.
        added: fields that the canonical form has by name behind those, where they are present; strings.
        tenant: which field is the tenant.
        no_tenant: the tenant that none may be.
        extra_prefix: what the names of unknown fields get.
        limits: bytes of a line, characters of a string, attributes, bytes of a tenant's folder.
        composed: of each code point, whether text made of such is surely in NFC.
    """

    names: npt.NDArray[np.uint8]
    name_lengths: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    required: npt.NDArray[np.bool_]
    either: npt.NDArray[np.int64]
    blank_refused: npt.NDArray[np.bool_]
    hash_order: npt.NDArray[np.int64]
    added: npt.NDArray[np.int64]
    tenant: int
    no_tenant: npt.NDArray[np.uint8]
    extra_prefix: npt.NDArray[np.uint8]
    limits: npt.NDArray[np.int64]
    composed: npt.NDArray[np.bool_]


class Found(NamedTuple):
    """Arrays that `scan_lines` fills.

    Attributes:
        status: of each line, BLANK, GOOD or LEFT.
        fields: texts of the fields, one row per line and one column per field of the grammar.
        micros: of each line, its time in microseconds since 1970 UTC.
        attr_ends: of each line, how many attributes it and the lines before it have.
        keys: names of the attributes, sorted within each line.
        values: their values.
        canonical: canonical forms of the good lines, one after the other.
        canonical_ends: where each line's form ends.
    """

    status: npt.NDArray[np.uint8]
    fields: npt.NDArray[np.int64]
    micros: npt.NDArray[np.int64]
    attr_ends: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    canonical: npt.NDArray[np.uint8]
    canonical_ends: npt.NDArray[np.int64]


@_compiled
def _at(buffer, at):
    """The byte at a place that is known not to be negative: an unsigned index needs no look from the end."""
    return buffer[nb.uint64(at)]


@_compiled
def text_of(offset, length):
    """A text as one number."""
    return (nb.int64(offset) << LENGTH_BITS) | length


@_compiled
def _copy(out, at, source, offset, size):
    """Copy bytes; returns the place after them."""
    for i in range(size):
        out[nb.uint64(at + i)] = source[nb.uint64(offset + i)]
    return at + size


@_compiled
def _is_space(point):
    """What str.strip() takes away."""
    return (
        point == 32 or 9 <= point <= 13 or 28 <= point <= 31 or point == 0x85 or point == 0xA0 or point == 0x1680
        or 0x2000 <= point <= 0x200A or point == 0x2028 or point == 0x2029 or point == 0x202F or point == 0x205F
        or point == 0x3000
    )  # fmt: skip


@_compiled
def _skip_space(buffer, at, end):
    while at < end and (buffer[at] == 32 or buffer[at] == 9 or buffer[at] == 10 or buffer[at] == 13):
        at += 1
    return at


@_compiled
def _hex4(buffer, at, end):
    """Value of four hex digits, or -1."""
    if at + 4 > end:
        return -1
    value = 0
    for i in range(at, at + 4):
        c = buffer[i]
        if 48 <= c <= 57:
            digit = c - 48
        elif 97 <= c <= 102:
            digit = c - 87
        elif 65 <= c <= 70:
            digit = c - 55
        else:
            return -1
        value = value * 16 + digit
    return value


@_compiled
def _code_point(buffer, at, end):
    """Code point of the UTF-8 sequence at a byte from 0x80 on, and its length; length 0 when there is none."""
    c = buffer[at]
    if 0xC2 <= c <= 0xDF:
        size, point, low, high = 2, c & 0x1F, 0x80, 0xBF
    elif 0xE0 <= c <= 0xEF:
        size, point = 3, c & 0x0F
        low = 0xA0 if c == 0xE0 else 0x80
        high = 0x9F if c == 0xED else 0xBF
    elif 0xF0 <= c <= 0xF4:
        size, point = 4, c & 0x07
        low = 0x90 if c == 0xF0 else 0x80
        high = 0x8F if c == 0xF4 else 0xBF
    else:
        return 0, 0
    if at + size > end or buffer[at + 1] < low or buffer[at + 1] > high:
        return 0, 0
    point = (point << 6) | (buffer[at + 1] & 0x3F)
    for i in range(2, size):
        if buffer[at + i] < 0x80 or buffer[at + i] > 0xBF:
            return 0, 0
        point = (point << 6) | (buffer[at + i] & 0x3F)
    return point, size


@_compiled
def _put_utf8(buffer, at, point):
    if point < 0x80:
        buffer[at] = point
        return at + 1
    if point < 0x800:
        buffer[at] = 0xC0 | (point >> 6)
        buffer[at + 1] = 0x80 | (point & 0x3F)
        return at + 2
    if point < 0x10000:
        buffer[at] = 0xE0 | (point >> 12)
        buffer[at + 1] = 0x80 | ((point >> 6) & 0x3F)
        buffer[at + 2] = 0x80 | (point & 0x3F)
        return at + 3
    buffer[at] = 0xF0 | (point >> 18)
    buffer[at + 1] = 0x80 | ((point >> 12) & 0x3F)
    buffer[at + 2] = 0x80 | ((point >> 6) & 0x3F)
    buffer[at + 3] = 0x80 | (point & 0x3F)
    return at + 4


@_compiled
def _escape(buffer, at, end):
    """Code point of the escape whose backslash is at `at`, and the place after it; place -1 when there is none."""
    if at + 1 >= end:
        return 0, -1
    c = buffer[at + 1]
    if c == 34 or c == 92 or c == 47:
        return nb.int64(c), at + 2
    if c == 98:
        return 8, at + 2
    if c == 102:
        return 12, at + 2
    if c == 110:
        return 10, at + 2
    if c == 114:
        return 13, at + 2
    if c == 116:
        return 9, at + 2
    if c != 117:
        return 0, -1
    point = _hex4(buffer, at + 2, end)
    if point < 0 or 0xDC00 <= point <= 0xDFFF:
        return 0, -1
    if point < 0xD800 or point > 0xDFFF:
        return point, at + 6
    if at + 7 >= end or buffer[at + 6] != 92 or buffer[at + 7] != 117:
        return 0, -1
    low = _hex4(buffer, at + 8, end)
    if low < 0xDC00 or low > 0xDFFF:
        return 0, -1
    return 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00), at + 12


@_compiled
def _string(buffer, at, end, composed, most, free):
    """The string whose first character is at `at`.

    Returns:
        Place after the closing quotation mark, -1 when the string is left; its text; whether it holds more than
        whitespace; the next free place of the buffer.
    """
    first = at
    while at < end and _PLAIN[_at(buffer, at)]:
        at += 1
    if at < end and _at(buffer, at) == 34 and at - first <= most:
        is_visible = False
        for i in range(first, at):
            if _at(buffer, i) > 32:
                is_visible = True
                break
        return at + 1, text_of(first, at - first), is_visible, free
    return _unusual_string(buffer, first, end, composed, most, free)


@_compiled
def _unusual_string(buffer, at, end, composed, most, free):
    """As `_string`, for strings with escapes or with characters beyond ASCII."""
    first, start, count = at, free, 0
    is_escaped = False
    is_visible = False
    while at < end:
        c = buffer[at]
        if c == 34:
            text = text_of(start, free - start) if is_escaped else text_of(first, at - first)
            return at + 1, text, is_visible, free
        count += 1
        if c < 32 or count > most:
            break
        if c == 92:
            if not is_escaped:
                is_escaped = True
                free = _copy(buffer, free, buffer, first, at - first)
            point, after = _escape(buffer, at, end)
            if after < 0 or not composed[point]:
                break
            free = _put_utf8(buffer, free, point)
        else:
            point, size = (nb.int64(c), 1) if c < 128 else _code_point(buffer, at, end)
            if size == 0 or not composed[point]:
                break
            after = at + size
            if is_escaped:
                free = _copy(buffer, free, buffer, at, size)
        if not _is_space(point):
            is_visible = True
        at = after
    return -1, NO_TEXT, False, start


@_compiled
def _number(buffer, at, end):
    """A number whose text is what Python makes of its value, or that text and zeros behind the point.

    Up to 15 digits a decimal is the shortest text of its own float.

    Returns:
        Place after it, -1 for others; the length of that text.
    """
    first = at
    is_negative = buffer[at] == 45
    if is_negative:
        at += 1
    digits = at
    while at < end and 48 <= buffer[at] <= 57:
        at += 1
    whole = at - digits
    length = at - first
    if whole == 0 or whole > _MOST_DIGITS or (buffer[digits] == 48 and whole > 1):
        return -1, 0
    is_whole = True
    if at < end and buffer[at] == 46:
        at += 1
        fraction = at
        while at < end and 48 <= buffer[at] <= 57:
            at += 1
        last = at
        while last > fraction and buffer[last - 1] == 48:
            last -= 1
        if at == fraction or whole + last - fraction > 15:
            return -1, 0
        if last > fraction:
            is_whole = False
            length = last - first
            # Smaller ones are written with an exponent.
            if buffer[digits] == 48 and last - fraction > 4:
                return -1, 0
    if at < end and (buffer[at] == 101 or buffer[at] == 69):
        return -1, 0
    if is_whole and is_negative and buffer[digits] == 48:
        return -1, 0
    return at, length


@_compiled
def _word(buffer, at, end, word):
    """Place after a word, or -1."""
    if at + len(word) > end:
        return -1
    for i in range(len(word)):
        if buffer[at + i] != word[i]:
            return -1
    return at + len(word)


@_compiled
def _digits(buffer, at, count):
    """Value of `count` digits, or -1."""
    value = 0
    for i in range(at, at + count):
        if buffer[i] < 48 or buffer[i] > 57:
            return -1
        value = value * 10 + (buffer[i] - 48)
    return value


@_compiled
def _days(year, month, day):
    """Days since 1970-01-01 of a date of the proleptic Gregorian calendar (Hinnant, days_from_civil)."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


@_compiled
def _days_in_month(year, month):
    if month == 2:
        return 29 if (year % 4 == 0 and year % 100 != 0) or year % 400 == 0 else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


@_compiled
def _rfc3339(text, at, size):
    """Microseconds since 1970 UTC of a time; -1 when it is left, as are those before 1970 and leap seconds."""
    return _rfc3339_of(text, at, size, False)


@_compiled
def _rfc3339_of(text, at, size, is_utc):
    """As `_rfc3339`; one that is in UTC, as is known from elsewhere, has no offset."""
    if (
        size < (19 if is_utc else 20)
        or text[at + 4] != 45
        or text[at + 7] != 45
        or text[at + 13] != 58
        or text[at + 16] != 58
    ):
        return -1
    if text[at + 10] != 84 and text[at + 10] != 116 and text[at + 10] != 32:
        return -1
    year, month, day = _digits(text, at, 4), _digits(text, at + 5, 2), _digits(text, at + 8, 2)
    hour, minute, second = _digits(text, at + 11, 2), _digits(text, at + 14, 2), _digits(text, at + 17, 2)
    if year < 1970 or month < 1 or month > 12 or day < 1 or day > _days_in_month(year, month):
        return -1
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return -1
    end, at = at + size, at + 19
    micros = 0
    if at < end and text[at] == 46:
        at += 1
        digits = 0
        while at < end and 48 <= text[at] <= 57:
            if digits < 6:
                micros = micros * 10 + (text[at] - 48)
            digits += 1
            at += 1
        if digits == 0 or digits > 18:
            return -1
        for _ in range(digits, 6):
            micros *= 10
    offset = 0
    if is_utc:
        if at != end:
            return -1
    elif at + 1 == end and (text[at] == 90 or text[at] == 122):
        offset = 0
    elif at + 6 == end and (text[at] == 43 or text[at] == 45) and text[at + 3] == 58:
        hours, minutes = _digits(text, at + 1, 2), _digits(text, at + 4, 2)
        if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
            return -1
        offset = hours * 60 + minutes if text[at] == 43 else -(hours * 60 + minutes)
    else:
        return -1
    seconds = _days(year, month, day) * 86400 + hour * 3600 + (minute - offset) * 60 + second
    return seconds * 1_000_000 + micros


@_compiled
def _comes_after(buffer, first, other):
    """-1, 0 or 1 as the first text sorts before, with or after the other; the order of UTF-8 is that of code points."""
    first_at, other_at = first >> LENGTH_BITS, other >> LENGTH_BITS
    first_size, other_size = first & _LENGTH, other & _LENGTH
    for i in range(min(first_size, other_size)):
        a, b = _at(buffer, first_at + i), _at(buffer, other_at + i)
        if a != b:
            return -1 if a < b else 1
    return 0 if first_size == other_size else (-1 if first_size < other_size else 1)


@_compiled
def _put_json(out, at, buffer, text, end_of_lines):
    """A JSON string as json.dumps(ensure_ascii=False) writes it."""
    offset, size = text >> LENGTH_BITS, text & _LENGTH
    out[at] = 34
    if offset < end_of_lines:
        at = _copy(out, at + 1, buffer, offset, size)
    else:
        at = _put_escaped(out, at + 1, buffer, offset, size)
    out[at] = 34
    return at + 1


@_compiled
def _put_escaped(out, at, buffer, offset, size):
    """Characters as they stand in a JSON string."""
    for i in range(offset, offset + size):
        c = buffer[i]
        if c >= 32 and c != 34 and c != 92:
            out[at] = c
            at += 1
            continue
        out[at] = 92
        at += 1
        if c == 34 or c == 92:
            out[at] = c
        elif c == 8:
            out[at] = 98
        elif c == 12:
            out[at] = 102
        elif c == 10:
            out[at] = 110
        elif c == 13:
            out[at] = 114
        elif c == 9:
            out[at] = 116
        else:
            out[at], out[at + 1], out[at + 2] = 117, 48, 48
            out[at + 3] = 48 + (c >> 4)
            low = c & 15
            out[at + 4] = 48 + low if low < 10 else 87 + low
            at += 4
        at += 1
    return at


@_compiled
def _put_integer(out, at, value):
    """A number that is not negative, in digits."""
    divisor = 1
    while value // divisor >= 10:
        divisor *= 10
    while divisor > 0:
        out[at] = 48 + (value // divisor) % 10
        at += 1
        divisor //= 10
    return at


@_compiled
def _field_named(buffer, text, names, lengths):
    at, size = text >> LENGTH_BITS, text & _LENGTH
    for field in range(len(lengths)):
        if lengths[field] == size:
            same = True
            for i in range(size):
                if names[field, i] != _at(buffer, at + i):
                    same = False
                    break
            if same:
                return field
    return -1


@_compiled
def _is_tenant(buffer, text, no_tenant, most):
    """Whether a tenant is not the one that none may be, and its folder name has at most `most` bytes."""
    at, size = text >> LENGTH_BITS, text & _LENGTH
    folder = 0
    for i in range(at, at + size):
        c = buffer[i]
        as_is = 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c == 95 or c == 46 or c == 126 or c == 45
        folder += 1 if as_is else 3  # all other bytes of a partition value take three characters
    if size == len(no_tenant) and _word(buffer, at, at + size, no_tenant) > 0:
        return False
    return folder <= most


@_compiled
def scan_lines(buffer, starts, grammar, earliest, latest, found):
    """Fill the arrays of `found`; returns how far attributes, canonical forms and the buffer were filled.

    Args:
        buffer: the lines, and room behind them for texts.
        starts: where each line begins, and where the last one ends.
        grammar: the contract.
        earliest: first allowed time, microseconds since 1970 UTC.
        latest: last allowed time.
        found: of as many lines.
    """
    kinds, required, limits, no_tenant, tenant = (
        grammar.kinds, grammar.required, grammar.limits, grammar.no_tenant, grammar.tenant
    )  # fmt: skip
    status, fields, micros, keys, values = found.status, found.fields, found.micros, found.keys, found.values
    attr_ends, canonical_ends = found.attr_ends, found.canonical_ends
    end_of_lines = starts[-1]
    attrs, form, free = 0, 0, end_of_lines
    seen = np.zeros(len(kinds), np.bool_)
    members = np.zeros((2, _MAX_MEMBERS), np.int64)
    for line in range(len(starts) - 1):
        at, end = starts[line], starts[line + 1]
        if end > at and buffer[end - 1] == 10:
            end -= 1
        seen[:] = False
        for field in range(len(kinds)):
            fields[line, field] = NO_TEXT
        count, after, time = _scan_line(buffer, at, end, grammar, fields, line, members, free, seen)
        status[line] = BLANK if count == -2 else LEFT
        kept = 0
        for i in range(count):
            kept += members[1, i] != NO_TEXT
        is_good = count >= 0 and kept <= limits[2] and earliest <= time <= latest
        for field in range(len(kinds)):
            if required[field] and not seen[field]:
                is_good = False
        has_either = len(grammar.either) == 0
        for i in range(len(grammar.either)):
            has_either |= fields[line, grammar.either[i]] != NO_TEXT
        is_good &= has_either
        if (
            is_good
            and _is_tenant(buffer, fields[line, tenant], no_tenant, limits[3])
            and _sort_members(count, members, buffer)
        ):
            status[line] = GOOD
            micros[line] = time
            free = after
            for i in range(count):
                if members[1, i] != NO_TEXT:
                    keys[attrs], values[attrs] = members[0, i], members[1, i]
                    attrs += 1
            form = _put_canonical(found, form, buffer, end_of_lines, grammar, line, attrs - kept, attrs)
        attr_ends[line] = attrs
        canonical_ends[line] = form
    return attrs, form, free


@_compiled
def _sort_members(count, members, buffer):
    """Sort by name; False when a name occurs twice."""
    for i in range(1, count):
        name, value = members[0, i], members[1, i]
        j = i
        while j > 0:
            order = _comes_after(buffer, name, members[0, j - 1])
            if order == 0:
                return False
            if order > 0:
                break
            members[0, j], members[1, j] = members[0, j - 1], members[1, j - 1]
            j -= 1
        members[0, j], members[1, j] = name, value
    return True


@_inlined
def _put_canonical(found, at, buffer, end_of_lines, grammar, line, first, last):
    """The canonical form of an event, as `events.canonical_hash` hashes it."""
    out = found.canonical
    for i in range(len(grammar.hash_order)):
        field = grammar.hash_order[i]
        out[at] = 91 if i == 0 else 44
        at += 1
        if grammar.kinds[field] == TIMESTAMP:
            at = _put_integer(out, at, found.micros[line])
        elif grammar.kinds[field] == ATTRIBUTES:
            out[at] = 91
            at += 1
            for a in range(first, last):
                if a > first:
                    out[at] = 44
                    at += 1
                out[at] = 91
                at = _put_json(out, at + 1, buffer, found.keys[a], end_of_lines)
                out[at] = 44
                at = _put_json(out, at + 1, buffer, found.values[a], end_of_lines)
                out[at] = 93
                at += 1
            out[at] = 93
            at += 1
        elif found.fields[line, field] == NO_TEXT:
            at = _copy(out, at, _NULL, 0, 4)
        else:
            at = _put_json(out, at, buffer, found.fields[line, field], end_of_lines)
    for i in range(len(grammar.added)):
        field = grammar.added[i]
        if found.fields[line, field] != NO_TEXT:
            out[at], out[at + 1], out[at + 2] = 44, 91, 34
            at = _copy(out, at + 3, grammar.names[field], 0, grammar.name_lengths[field])
            out[at], out[at + 1] = 34, 44
            at = _put_json(out, at + 2, buffer, found.fields[line, field], end_of_lines)
            out[at] = 93
            at += 1
    out[at] = 93
    return at + 1


@_compiled
def _scalar(buffer, at, end, composed, most, free):
    """A value of an attribute: a string, a plain number, true, false or null.

    Returns:
        Place after it, -1 when it is left; its text, none for null; the next free place of the buffer.
    """
    if at >= end:
        return -1, NO_TEXT, free
    c = buffer[at]
    if c == 34:
        after, text, _, free = _string(buffer, at + 1, end, composed, most, free)
        return after, text, free
    if c == 45 or 48 <= c <= 57:
        after, length = _number(buffer, at, end)
        return after, text_of(at, length), free
    if c == 116:
        return _word(buffer, at, end, _TRUE), text_of(at, 4), free
    if c == 102:
        return _word(buffer, at, end, _FALSE), text_of(at, 5), free
    if c == 110:
        return _word(buffer, at, end, _NULL), NO_TEXT, free
    return -1, NO_TEXT, free


@_compiled
def _epoch_ms(buffer, at, end):
    """A whole number of milliseconds since 1970, at most 15 digits; returns the place after it, and microseconds."""
    first = at
    while at < end and 48 <= buffer[at] <= 57:
        at += 1
    if not 1 <= at - first <= 15 or (buffer[first] == 48 and at - first > 1):
        return -1, -1
    if at < end and (buffer[at] == 46 or buffer[at] == 101 or buffer[at] == 69):
        return -1, -1
    return at, _digits(buffer, first, at - first) * 1000


@_inlined
def _scan_line(buffer, at, end, grammar, fields, line, members, free, seen):
    """Scan one line into its fields and into members, which are its attributes and unknown fields as they come.

    Returns:
        How many members there are, -1 when the line is left, -2 when it is blank; the next free place of the buffer;
        the time in microseconds, -1 for none.
    """
    limits, prefix, composed, kinds = grammar.limits, grammar.extra_prefix, grammar.composed, grammar.kinds
    names, name_lengths = grammar.names, grammar.name_lengths
    required, blank_refused = grammar.required, grammar.blank_refused
    count, time = 0, -1
    first = at
    while at < end and (buffer[at] == 32 or 9 <= buffer[at] <= 13):
        at += 1
    if at == end:
        return -2, free, time
    size = end - first
    at = _skip_space(buffer, first, end)
    if size > limits[0] or at == end or buffer[at] != 123:
        return -1, free, time
    at = _skip_space(buffer, at + 1, end)
    while True:
        if at >= end or buffer[at] != 34:
            return -1, free, time
        before = free
        at, name, _, free = _string(buffer, at + 1, end, composed, limits[1], free)
        # A name with escapes is left: it could be a known one.
        if at < 0 or free != before:
            return -1, free, time
        at = _skip_space(buffer, at, end)
        if at >= end or buffer[at] != 58:
            return -1, free, time
        at = _skip_space(buffer, at + 1, end)
        if at >= end:
            return -1, free, time
        field = _field_named(buffer, name, names, name_lengths)
        if field < 0:
            length = len(prefix) + (name & _LENGTH)
            if count == _MAX_MEMBERS or length > limits[1]:
                return -1, free, time
            members[0, count] = text_of(free, length)
            free = _copy(buffer, free, prefix, 0, len(prefix))
            free = _copy(buffer, free, buffer, name >> LENGTH_BITS, name & _LENGTH)
            start = at
            at, text, free = _scalar(buffer, at, end, composed, limits[1], free)
            # Of an unknown field null is kept, as text.
            members[1, count] = text_of(start, 4) if text == NO_TEXT else text
            count += 1
        elif seen[field]:
            return -1, free, time
        elif kinds[field] == ATTRIBUTES:
            at, count, free = _attributes(buffer, at, end, limits, composed, members, count, free)
        elif kinds[field] == BESIDE:
            at = _word(buffer, at, end, _NULL)
        elif buffer[at] == 34:
            at, text, is_visible, free = _string(buffer, at + 1, end, composed, limits[1], free)
            if at < 0 or (blank_refused[field] and not is_visible):
                return -1, free, time
            if kinds[field] == TIMESTAMP:
                time = _rfc3339(buffer, text >> LENGTH_BITS, text & _LENGTH)
            elif text & _LENGTH > 0:
                fields[line, field] = text
        elif kinds[field] == TIMESTAMP:
            at, time = _epoch_ms(buffer, at, end)
        else:
            at = -1 if required[field] else _word(buffer, at, end, _NULL)
        if at < 0:
            return -1, free, time
        if field >= 0:
            seen[field] = True
        at = _skip_space(buffer, at, end)
        if at >= end:
            return -1, free, time
        if buffer[at] == 44:
            at = _skip_space(buffer, at + 1, end)
            continue
        if buffer[at] != 125:
            return -1, free, time
        at = _skip_space(buffer, at + 1, end)
        return (count, free, time) if at == end else (-1, free, time)


@_compiled
def _attributes(buffer, at, end, limits, composed, members, count, free):
    """The object of attributes at `at`, or null.

    Returns:
        Place after it, -1 when it is left; how many members there are now; the next free place of the buffer.
    """
    if buffer[at] == 110:
        return _word(buffer, at, end, _NULL), count, free
    if buffer[at] != 123:
        return -1, count, free
    at = _skip_space(buffer, at + 1, end)
    if at < end and buffer[at] == 125:
        return at + 1, count, free
    while True:
        if at >= end or buffer[at] != 34 or count == _MAX_MEMBERS:
            return -1, count, free
        at, name, _, free = _string(buffer, at + 1, end, composed, limits[1], free)
        if at < 0:
            return -1, count, free
        at = _skip_space(buffer, at, end)
        if at >= end or buffer[at] != 58:
            return -1, count, free
        at = _skip_space(buffer, at + 1, end)
        at, text, free = _scalar(buffer, at, end, composed, limits[1], free)
        if at < 0:
            return -1, count, free
        members[0, count], members[1, count] = name, text
        count += 1
        at = _skip_space(buffer, at, end)
        if at >= end:
            return -1, count, free
        if buffer[at] == 125:
            return at + 1, count, free
        if buffer[at] != 44:
            return -1, count, free
        at = _skip_space(buffer, at + 1, end)


@_compiled
def fill_views(texts, buffer, end_of_lines, views, view_bytes):
    """Arrow string views of texts: four int32 each, the same memory as `view_bytes`; those of no text stay zero."""
    for i in range(len(texts)):
        if texts[i] == NO_TEXT:
            continue
        offset, size = texts[i] >> LENGTH_BITS, texts[i] & _LENGTH
        views[i, 0] = size
        for j in range(size if size <= 12 else 4):
            view_bytes[i, 4 + j] = buffer[offset + j]
        if size > 12:
            is_behind = offset >= end_of_lines
            views[i, 2] = is_behind
            views[i, 3] = offset - end_of_lines if is_behind else offset


# Records of sources, through the mapping of each: `core.sources.columns`.

SKIPPED, WITHHELD = 3, 4
IS_READ, OF_TRAITS, OF_GROUP, IS_EACH = 1, 2, 4, 8
TENANT, USER, ANONYMOUS, SESSION, ACTION, ID, TIME, RECEIVED = range(8)
FIRST_ATTRIBUTE = 8
"""Results of a program: the fields, then its attributes, consents, and four parts of an item twice."""
RFC3339, UTC, EPOCH_S, EPOCH_MS, EPOCH_US, EPOCH_NS = range(6)
(
    LOAD, CONSTANT, RESULT, JUMP, JUMP_IF_FOUND, UNLESS, STRIP, LOWER, MAP, HASH,
    JOIN, JOIN_TEXT, JOIN_FOUND, JOINED, STORE, SKIP_IF, SKIP_UNLESS,
) = range(17)  # fmt: skip
OR_AS_IT_IS, OR_NONE, OR_LEFT = range(3)
"""What a map makes of a text that it does not name."""
NOTHING, TEXT, OTHER, HASHED = range(4)
"""Kinds of a value: none, a string, a number or a boolean, a string of which the sha256 is meant."""
ITEM_PARTS = 4
ID_PART, QUANTITY_PART, PRICE_PART, CURRENCY_PART = range(ITEM_PARTS)

_MOST_DEPTH, _MOST_NAMES = 32, 1024
_IS_ARRAY, _NODE, _CAPTURE, _PREFIX, _NAMES, _INDEX, _ROW, _FLAGS = range(8)
_NONE = -1


class Tree(NamedTuple):
    """The paths that a mapping reads.

    Attributes:
        children: where the children of each node begin among `child_*`; one more than there are nodes.
        child_hashes: of the names of children; of an element of a list its index.
        child_names: their names, as constants; -1 for an element of a list.
        child_nodes: their nodes.
        slots: of each node, the slot that its scalar goes into, or -1.
        captures: of each node, the capture whose root it is, or -1.
        flags: of each node, IS_READ, OF_TRAITS, OF_GROUP, IS_EACH.
        item_root: node of an element of the list of items, whose slots are the items' own; -1 without one.
        captures_rest: of each capture, whether what no path reads of it becomes attributes.
        captures_traits: whether it holds the traits.
        captures_group: whether it holds facts of the group.
    """

    children: npt.NDArray[np.int64]
    child_hashes: npt.NDArray[np.uint64]
    child_names: npt.NDArray[np.int64]
    child_nodes: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    captures: npt.NDArray[np.int64]
    flags: npt.NDArray[np.int64]
    item_root: int
    captures_rest: npt.NDArray[np.bool_]
    captures_traits: npt.NDArray[np.bool_]
    captures_group: npt.NDArray[np.bool_]


class Program(NamedTuple):
    """What a mapping does with the values that it reads.

    Attributes:
        code: operation and two operands each.
        item_code: the same of an item; its results are the parts of an item.
        conditions: where the terms of each condition begin; one more than there are.
        terms: slot, and where its texts begin and end among `condition_texts`.
        condition_texts: constants.
        maps: where the pairs of each map begin; one more than there are.
        map_names: constants, sorted within each map.
        map_values: constants.
        attributes: names of the attributes, constants.
        conditional: of each attribute, whether it is the mapping's only under a condition.
        traits_when: condition of the traits, -1 for always, -2 for never.
        group_when: the same of the group.
        traits_only: whether only traits of nodes that are flagged so count.
        group_only: the same of the group.
        consents: names of the consents, constants.
        granted: the word for a consent that is given, a constant.
        required: of each consent, whether the source requires it.
        time_format: RFC3339 and so on.
        received_format: the same, -1 where the mapping has no such time.
        group_prefix: `group.`, a constant.
        group_named: constants that name a group: a fact of that name has another.
    """

    code: npt.NDArray[np.int64]
    item_code: npt.NDArray[np.int64]
    conditions: npt.NDArray[np.int64]
    terms: npt.NDArray[np.int64]
    condition_texts: npt.NDArray[np.int64]
    maps: npt.NDArray[np.int64]
    map_names: npt.NDArray[np.int64]
    map_values: npt.NDArray[np.int64]
    attributes: npt.NDArray[np.int64]
    conditional: npt.NDArray[np.bool_]
    traits_when: int
    group_when: int
    traits_only: bool
    group_only: bool
    consents: npt.NDArray[np.int64]
    granted: int
    required: npt.NDArray[np.bool_]
    time_format: int
    received_format: int
    group_prefix: int
    group_named: npt.NDArray[np.int64]


class MappedRecords(NamedTuple):
    """Arrays that `map_records` fills.

    Attributes:
        status: of each record, BLANK, GOOD, LEFT, SKIPPED or WITHHELD.
        fields: texts TENANT to ID, one row a record.
        micros: of each record, its time in microseconds since 1970 UTC.
        received: the same of when it was received; -1 for none.
        ends: of each record, how many attributes, traits, consents and items it and those before it have.
        names: of the attributes, traits and consents, a row each; sorted within each record.
        values: theirs.
        hashed: of each attribute, whether the sha256 of its value is meant.
        items: of each item its parts.
        canonical: canonical forms of the good records, one after the other.
        canonical_ends: where each record's form ends.
    """

    status: npt.NDArray[np.uint8]
    fields: npt.NDArray[np.int64]
    micros: npt.NDArray[np.int64]
    received: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    names: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    hashed: npt.NDArray[np.bool_]
    items: npt.NDArray[np.int64]
    canonical: npt.NDArray[np.uint8]
    canonical_ends: npt.NDArray[np.int64]


@_compiled
def name_hash(buffer, at, end):
    """A hash of a name (FNV-1a)."""
    found = nb.uint64(14695981039346656037)
    for i in range(at, end):
        found = (found ^ nb.uint64(_at(buffer, i))) * nb.uint64(1099511628211)
    return found


@_compiled
def _same(buffer, first, other):
    return first & _LENGTH == other & _LENGTH and _comes_after(buffer, first, other) == 0


@_compiled
def _skip_string(buffer, at, end):
    """Place after the string whose first character is at `at`; -1 when the record is left."""
    while at < end:
        c = _at(buffer, at)
        if _PLAIN[c]:
            at += 1
        elif c == 34:
            return at + 1
        elif c == 92:
            _, at = _escape(buffer, at, end)
            if at < 0:
                return -1
        else:
            _, size = (0, 0) if c < 128 else _code_point(buffer, at, end)
            if size == 0 and c != 127:
                return -1
            at += 1 if c == 127 else size
    return -1


@_compiled
def _skip_number(buffer, at, end):
    """Place after any number of JSON that is not very long, or -1."""
    first = at
    if buffer[at] == 45:
        at += 1
    digits = at
    while at < end and 48 <= buffer[at] <= 57:
        at += 1
    if at == digits or (buffer[digits] == 48 and at - digits > 1):
        return -1
    if at < end and buffer[at] == 46:
        at += 1
        digits = at
        while at < end and 48 <= buffer[at] <= 57:
            at += 1
        if at == digits:
            return -1
    if at < end and (buffer[at] == 101 or buffer[at] == 69):
        at += 1
        if at < end and (buffer[at] == 43 or buffer[at] == 45):
            at += 1
        digits = at
        while at < end and 48 <= buffer[at] <= 57:
            at += 1
        if at == digits:
            return -1
    return at if at - first <= 100 else -1


@_compiled
def _flat_list(buffer, at, end, composed, most, free, most_free):
    """The list of plain scalars at `at`, as canonical JSON.

    Returns:
        Place after it, -1 when the record is left; its text; the next free place of the buffer.
    """
    start = free
    if free + end - at > most_free:
        return -1, NO_TEXT, start
    buffer[free] = 91
    free += 1
    at = _skip_space(buffer, at + 1, end)
    if at < end and buffer[at] == 93:
        buffer[free] = 93
        return at + 1, text_of(start, 2), free + 1
    while at < end:
        first, c = at, buffer[at]
        if c == 34:
            before = free
            at, _, _, free = _string(buffer, at + 1, end, composed, most, free)
            if at < 0 or free != before:
                return -1, NO_TEXT, start
        elif c == 45 or 48 <= c <= 57:
            at, _ = _number(buffer, at, end)
            for i in range(first, at):
                # Those with a point have a text of their own inside of JSON.
                if buffer[i] == 46:
                    return -1, NO_TEXT, start
        elif c == 116:
            at = _word(buffer, at, end, _TRUE)
        elif c == 102:
            at = _word(buffer, at, end, _FALSE)
        else:
            at = _word(buffer, at, end, _NULL)
        if at < 0:
            return -1, NO_TEXT, start
        free = _copy(buffer, free, buffer, first, at - first)
        at = _skip_space(buffer, at, end)
        if at >= end:
            return -1, NO_TEXT, start
        if buffer[at] == 93:
            buffer[free] = 93
            length = free + 1 - start
            return (at + 1, text_of(start, length), free + 1) if length <= most else (-1, NO_TEXT, start)
        if buffer[at] != 44:
            return -1, NO_TEXT, start
        buffer[free] = 44
        free += 1
        at = _skip_space(buffer, at + 1, end)
    return -1, NO_TEXT, start


@_compiled
def _child(buffer, node, name, hashed, children, child_hashes, child_names, child_nodes, constants):
    """The child of a node by its name, or -1."""
    if node < 0:
        return _NONE
    for i in range(children[node], children[node + 1]):
        if child_hashes[i] == hashed and child_names[i] >= 0 and _same(buffer, constants[child_names[i]], name):
            return child_nodes[i]
    return _NONE


@_compiled
def _element(node, index, children, child_hashes, child_names, child_nodes):
    """The child of a node that is its element at an index, or -1."""
    if node < 0:
        return _NONE
    for i in range(children[node], children[node + 1]):
        if child_names[i] < 0 and child_hashes[i] == nb.uint64(index):
            return child_nodes[i]
    return _NONE


@_compiled
def _read_record(
    buffer, at, end, free, composed, limits, constants,
    children, child_hashes, child_names, child_nodes, node_slots, captures, node_flags, item_root, captures_rest,
    slots, kinds, item_slots, item_kinds, leaves, frames, hashes, path,
):  # fmt: skip
    """Read a record into the slots of its mapping, its captures and its items.

    To fill: slots, a row of item slots for each item, and leaves, a row each: name, value, capture, flags. Room: frames
    for open objects and lists, hashes for the names of open objects, path for where a leaf lies below its capture. Of
    `captures_rest` 2 says that a capture is nothing else.

    Returns:
        How many leaves there are, -1 when the record is left; how many rows of items are filled; the next free place
        of the buffer.
    """
    most_free = len(buffer) - (end - at) - 1
    most = limits[1]
    at = _skip_space(buffer, at, end)
    if at >= end or buffer[at] != 123 or free > most_free:
        return -1, 0, free
    leaf_count, rows, names, depth = 0, 0, 0, 0
    frame = frames[0]
    frame[_IS_ARRAY], frame[_NODE], frame[_CAPTURE], frame[_PREFIX] = 0, 0, _NONE, 0
    frame[_NAMES], frame[_INDEX], frame[_ROW], frame[_FLAGS] = 0, 0, _NONE, 0
    is_first = True
    at += 1
    while True:
        at = _skip_space(buffer, at, end)
        if at >= end:
            return -1, 0, free
        is_array = frame[_IS_ARRAY] == 1
        if not (is_first and buffer[at] == (93 if is_array else 125)):
            capture, flags, row, node = frame[_CAPTURE], frame[_FLAGS], frame[_ROW], _NONE
            name = NO_TEXT
            if is_array:
                if frame[_FLAGS] & IS_EACH:
                    if buffer[at] != 123 or rows == limits[4]:
                        return -1, 0, free
                    node, row, flags = item_root, rows, 0
                    item_slots[rows, :] = NO_TEXT
                    item_kinds[rows, :] = NOTHING
                    rows += 1
                else:
                    node = _element(frame[_NODE], frame[_INDEX], children, child_hashes, child_names, child_nodes)
                    frame[_INDEX] += 1
            else:
                if buffer[at] != 34 or names == _MOST_NAMES:
                    return -1, 0, free
                before = free
                at, name, _, free = _string(buffer, at + 1, end, composed, most, free)
                # A name with escapes is left: it could be a known one.
                if at < 0 or free != before:
                    return -1, 0, free
                start = name >> LENGTH_BITS
                hashed = name_hash(buffer, start, start + (name & _LENGTH))
                for i in range(frame[_NAMES], names):
                    if hashes[i] == hashed:
                        return -1, 0, free
                hashes[names] = hashed
                names += 1
                node = _child(
                    buffer, frame[_NODE], name, hashed, children, child_hashes, child_names, child_nodes, constants
                )
                at = _skip_space(buffer, at, end)
                if at >= end or buffer[at] != 58:
                    return -1, 0, free
                at = _skip_space(buffer, at + 1, end)
                if at >= end:
                    return -1, 0, free
            if node >= 0:
                flags |= node_flags[node]
            slot = node_slots[node] if node >= 0 else _NONE
            is_inner = node >= 0 and (children[node + 1] > children[node] or captures[node] >= 0)
            is_leaf = capture >= 0 and not (captures_rest[capture] == 2 and flags & IS_READ)
            prefix = frame[_PREFIX]
            if is_leaf:
                prefix = _longer_path(
                    buffer, path, prefix, name, frame[_NODE], children, child_hashes, child_names, child_nodes,
                    constants, most,
                )  # fmt: skip
                if prefix < 0:
                    return -1, 0, free
            c = buffer[at]
            is_list_leaf = c == 91 and is_leaf and not (flags & IS_EACH)
            if c == 123 or (c == 91 and not is_list_leaf):
                is_each = c == 91 and flags & IS_EACH != 0 and row < 0
                if slot >= 0 or depth + 1 == _MOST_DEPTH or (c == 123 and flags & IS_EACH):
                    return -1, 0, free
                if is_each and (rows > 0 or is_leaf):
                    return -1, 0, free
                depth += 1
                frame = frames[depth]
                frame[_IS_ARRAY], frame[_NODE], frame[_NAMES], frame[_INDEX] = c == 91, node, names, 0
                frame[_ROW], frame[_FLAGS] = row, (flags & IS_READ) | (IS_EACH if is_each else 0)
                frame[_CAPTURE], frame[_PREFIX] = (capture, prefix) if is_leaf else (_NONE, 0)
                if node >= 0 and captures[node] >= 0 and c == 123:
                    frame[_CAPTURE], frame[_PREFIX] = captures[node], 0
                is_first = True
                at += 1
                continue
            if flags & IS_EACH and c != 110:
                return -1, 0, free
            text, kind = NO_TEXT, NOTHING
            if is_list_leaf:
                if slot >= 0 or is_inner:
                    return -1, 0, free
                at, text, free = _flat_list(buffer, at, end, composed, most, free, most_free)
            elif c == 34:
                # A text that holds JSON is looked into.
                if is_inner and at + 1 < end:
                    inner = buffer[at + 1]
                    if inner == 123 or inner == 91 or inner == 92:
                        return -1, 0, free
                if slot >= 0 or is_leaf:
                    at, text, is_visible, free = _string(buffer, at + 1, end, composed, most, free)
                    if slot >= 0 and text & _LENGTH > 0 and not is_visible:
                        return -1, 0, free
                    kind = TEXT
                else:
                    at = _skip_string(buffer, at + 1, end)
            elif c == 45 or 48 <= c <= 57:
                if slot >= 0 or is_leaf:
                    start = at
                    at, length = _number(buffer, at, end)
                    text, kind = text_of(start, length), OTHER
                else:
                    at = _skip_number(buffer, at, end)
            elif c == 116:
                text, kind = text_of(at, 4), OTHER
                at = _word(buffer, at, end, _TRUE)
            elif c == 102:
                text, kind = text_of(at, 5), OTHER
                at = _word(buffer, at, end, _FALSE)
            else:
                at = _word(buffer, at, end, _NULL)
            if at < 0:
                return -1, 0, free
            if slot >= 0 and text != NO_TEXT and text & _LENGTH > 0:
                if row >= 0:
                    item_slots[row, slot], item_kinds[row, slot] = text, kind
                else:
                    slots[slot], kinds[slot] = text, kind
            if is_leaf:
                if leaf_count == _MAX_MEMBERS:
                    return -1, 0, free
                if frame[_PREFIX] > 0:
                    if free + prefix > most_free:
                        return -1, 0, free
                    name = text_of(free, prefix)
                    free = _copy(buffer, free, path, 0, prefix)
                leaves[leaf_count, 0], leaves[leaf_count, 1] = name, text
                leaves[leaf_count, 2], leaves[leaf_count, 3] = capture, flags
                leaf_count += 1
        is_first = False
        while True:
            at = _skip_space(buffer, at, end)
            if at >= end:
                return -1, 0, free
            if buffer[at] == 44:
                at += 1
                break
            if buffer[at] != (93 if frame[_IS_ARRAY] == 1 else 125):
                return -1, 0, free
            # An empty list of items is one, and yet none.
            if frame[_FLAGS] & IS_EACH and rows == 0:
                return -1, 0, free
            at += 1
            names = frame[_NAMES]
            if depth == 0:
                at = _skip_space(buffer, at, end)
                return (leaf_count, rows, free) if at == end else (-1, 0, free)
            depth -= 1
            frame = frames[depth]


@_compiled
def _longer_path(
    buffer, path, prefix, name, node, children, child_hashes, child_names, child_nodes, constants, most
):  # fmt: skip
    """Put a name behind the path below a capture; returns its length, -1 when the record is left."""
    start, size = name >> LENGTH_BITS, name & _LENGTH
    length = prefix + size + (1 if prefix > 0 else 0)
    if size == 0 or length > most:
        return -1
    for i in range(size):
        c = _at(buffer, start + i)
        if c == 46 or c == 91:
            # It reads as a path: of what lies there when a path of the mapping begins so.
            hashed = name_hash(buffer, start, start + i)
            known = _child(
                buffer, node, text_of(start, i), hashed, children, child_hashes, child_names, child_nodes, constants
            )
            if i == 0 or known >= 0:
                return -1
            break
    if prefix > 0:
        path[prefix] = 46
        prefix += 1
    return _copy(path, prefix, buffer, start, size)


@_compiled
def _is_visible(buffer, text):
    """Whether a text surely holds more than whitespace."""
    at, is_visible = text >> LENGTH_BITS, False
    for i in range(at, at + (text & _LENGTH)):
        is_visible |= 32 < buffer[i] < 127
    return is_visible


@_compiled
def _holds(buffer, condition, conditions, terms, condition_texts, slots, constants):
    """Whether a record has one of certain texts in each of certain slots."""
    for t in range(conditions[condition], conditions[condition + 1]):
        text = slots[terms[t, 0]]
        if text == NO_TEXT:
            return False
        is_one = False
        for i in range(terms[t, 1], terms[t, 2]):
            if _same(buffer, text, constants[condition_texts[i]]):
                is_one = True
                break
        if not is_one:
            return False
    return True


@_compiled
def _in_small_letters(buffer, text, free, strips):
    """A text of ASCII in small letters, without blanks around it where wanted.

    Returns:
        The text; whether it is ASCII and could be written; the next free place of the buffer.
    """
    at, end = text >> LENGTH_BITS, (text >> LENGTH_BITS) + (text & _LENGTH)
    while strips and at < end and _is_space(nb.int64(buffer[at])):
        at += 1
    while strips and end > at and _is_space(nb.int64(buffer[end - 1])):
        end -= 1
    if free + end - at > len(buffer):
        return NO_TEXT, False, free
    is_small = True
    for i in range(at, end):
        if buffer[i] >= 128:
            return NO_TEXT, False, free
        is_small &= not 65 <= buffer[i] <= 90
    if at == end:
        return NO_TEXT, True, free
    if is_small:
        return text_of(at, end - at), True, free
    start = free
    for i in range(at, end):
        c = buffer[i]
        buffer[free] = c + 32 if 65 <= c <= 90 else c
        free += 1
    return text_of(start, free - start), True, free


@_compiled
def _run(
    buffer, free, code, conditions, terms, condition_texts, maps, map_names, map_values, constants,
    slots, kinds, results, result_kinds,
):  # fmt: skip
    """Run a program over the slots of a record.

    Returns:
        GOOD, LEFT or SKIPPED; the next free place of the buffer.
    """
    text, kind, joined, step = NO_TEXT, NOTHING, free, 0
    while step < len(code):
        operation, operand, other = code[step, 0], code[step, 1], code[step, 2]
        step += 1
        if operation == LOAD:
            text, kind = slots[operand], kinds[operand]
        elif operation == JUMP_IF_FOUND:
            if text != NO_TEXT:
                step = operand
        elif operation == STORE:
            results[operand], result_kinds[operand] = text, kind
        elif operation == UNLESS:
            if not _holds(buffer, other, conditions, terms, condition_texts, slots, constants):
                text, step = NO_TEXT, operand
        elif operation == CONSTANT:
            text, kind = constants[operand], other
        elif operation == RESULT:
            text, kind = results[operand], result_kinds[operand]
        elif operation == JUMP:
            step = operand
        elif operation in (SKIP_IF, SKIP_UNLESS):
            holds = _holds(buffer, operand, conditions, terms, condition_texts, slots, constants)
            if holds == (operation == SKIP_IF):
                return SKIPPED, free
        elif operation == JOIN:
            joined = free
        elif operation in (JOIN_TEXT, JOIN_FOUND):
            if operation == JOIN_TEXT:
                text, kind = constants[operand], TEXT
            if text == NO_TEXT:
                free, step = joined, operand
            elif kind == HASHED or free + (text & _LENGTH) > len(buffer):
                return LEFT, free
            else:
                free = _copy(buffer, free, buffer, text >> LENGTH_BITS, text & _LENGTH)
        elif operation == JOINED:
            text, kind = text_of(joined, free - joined), TEXT
        elif text != NO_TEXT:
            if kind == HASHED:
                return LEFT, free
            if operation == STRIP:
                prefix = constants[operand]
                size = prefix & _LENGTH
                if (
                    kind == TEXT
                    and size <= text & _LENGTH
                    and _same(buffer, text_of(text >> LENGTH_BITS, size), prefix)
                ):
                    rest = (text & _LENGTH) - size
                    text = text_of((text >> LENGTH_BITS) + size, rest) if rest > 0 else NO_TEXT
                    if rest > 0 and not _is_visible(buffer, text):
                        return LEFT, free
            elif operation == LOWER:
                if kind == TEXT:
                    text, is_done, free = _in_small_letters(buffer, text, free, False)
                    if not is_done:
                        return LEFT, free
            elif operation == HASH:
                text, is_done, free = _in_small_letters(buffer, text, free, True)
                kind = HASHED
                if not is_done:
                    return LEFT, free
            elif operation == MAP:
                low, high, found = maps[operand], maps[operand + 1], NO_TEXT
                while low < high:
                    middle = (low + high) // 2
                    order = _comes_after(buffer, text, constants[map_names[middle]])
                    if order == 0:
                        found = constants[map_values[middle]]
                        break
                    if order < 0:
                        high = middle
                    else:
                        low = middle + 1
                if found != NO_TEXT:
                    text, kind = found, TEXT
                elif other == OR_NONE:
                    text = NO_TEXT
                elif other == OR_LEFT:
                    return LEFT, free
    return GOOD, free


@_compiled
def _instant(buffer, text, kind, said):
    """Microseconds since 1970 UTC of a time in the form that the mapping says; -1 when it is left."""
    at, size = text >> LENGTH_BITS, text & _LENGTH
    end, unit = at + size, said
    if kind == HASHED:
        return -1
    if said <= UTC:
        if kind == TEXT:
            found = _rfc3339(buffer, at, size)
            return _rfc3339_of(buffer, at, size, True) if found < 0 and said == UTC else found
        unit = EPOCH_MS
    whole = _digits_to(buffer, at, end)
    # Digits of a unit below a microsecond are cut.
    digits = 6 if unit == EPOCH_S else 3 if unit == EPOCH_MS else 0
    if whole == at or whole - at + digits > (19 if unit == EPOCH_NS else 18) or size > 25:
        return -1
    if (said <= UTC or unit == EPOCH_NS) and whole != end:
        return -1
    if unit == EPOCH_NS:
        return _digits(buffer, at, whole - at - 3) if whole - at > 3 else -1
    found = _digits(buffer, at, whole - at)
    fraction = whole + 1
    if whole < end and (buffer[whole] != 46 or _digits_to(buffer, fraction, end) != end or fraction == end):
        return -1
    for i in range(digits):
        is_there = whole < end and fraction + i < end
        found = found * 10 + (buffer[fraction + i] - 48 if is_there else 0)
    return found


@_compiled
def _digits_to(buffer, at, end):
    """Place after the digits at `at`."""
    while at < end and 48 <= buffer[at] <= 57:
        at += 1
    return at


@_compiled
def _is_amount(buffer, text):
    """Whether a text is a plain number below 10**12."""
    at, end = text >> LENGTH_BITS, (text >> LENGTH_BITS) + (text & _LENGTH)
    if at == end:
        return False
    after, _ = _number(buffer, at, end)
    first = at + 1 if buffer[at] == 45 else at
    return after == end and _digits_to(buffer, first, end) - first <= 12


@_compiled
def map_records(buffer, starts, free, constants, limits, composed, no_tenant, tree, program, earliest, latest,
                given_tenant, found):  # fmt: skip
    """Fill the arrays of `found`.

    Args:
        buffer: the records, and room behind them for texts.
        starts: where each record begins, and where the last one ends.
        free: the first free place of the buffer; between it and the records are the constants.
        constants: texts.
        limits: bytes of a record, characters of a string, attributes, bytes of a tenant's folder, items of an event.
        composed: as `Grammar` has it.
        no_tenant: the tenant that none may be.
        tree: the paths of the mapping.
        program: what it does with them.
        earliest: first allowed time, microseconds since 1970 UTC.
        latest: last allowed time.
        given_tenant: of all records, a constant; -1 where each says its own.
        found: of as many records.

    Returns:
        How many attributes, traits, consents and items there are; how far canonical forms and the buffer are filled.
    """
    (children, child_hashes, child_names, child_nodes, node_slots, captures, node_flags, item_root, captures_rest,
     captures_traits, captures_group) = tree  # fmt: skip
    rest_only = np.zeros(len(captures_rest), np.int64)
    for i in range(len(captures_rest)):
        rest_only[i] = captures_rest[i] + (captures_rest[i] and not captures_traits[i] and not captures_group[i])
    (code, item_code, conditions, terms, condition_texts, maps, map_names, map_values, attributes, conditional,
     traits_when, group_when, traits_only, group_only, consents, granted, required, time_format, received_format,
     group_prefix, group_named) = program  # fmt: skip
    status, fields, ends, names, values = found.status, found.fields, found.ends, found.names, found.values
    end_of_lines = starts[-1]
    slot_count = max(node_slots.max() + 1, 1)
    slots, kinds = np.empty(slot_count, np.int64), np.empty(slot_count, np.int64)
    item_slots, item_kinds = np.empty((limits[4], slot_count), np.int64), np.empty((limits[4], slot_count), np.int64)
    leaves = np.empty((_MAX_MEMBERS, 4), np.int64)
    frames, hashes = np.empty((_MOST_DEPTH, 8), np.int64), np.empty(_MOST_NAMES, np.uint64)
    path = np.empty(limits[1] + 1, np.uint8)
    first_consent = FIRST_ATTRIBUTE + len(attributes)
    of_record = first_consent + len(consents)
    result_count = of_record + 2 * ITEM_PARTS
    results, result_kinds = np.empty(result_count, np.int64), np.zeros(result_count, np.int64)
    item, item_of = np.empty(ITEM_PARTS, np.int64), np.zeros(ITEM_PARTS, np.int64)
    results[:] = NO_TEXT
    item[:] = NO_TEXT
    members = np.zeros((2, _MAX_MEMBERS), np.int64)
    hash_marks = np.zeros(_MAX_MEMBERS, np.int64)
    filled = np.zeros(4, np.int64)
    form = 0
    for line in range(len(starts) - 1):
        at, end = starts[line], starts[line + 1]
        if end > at and buffer[end - 1] == 10:
            end -= 1
        status[line] = LEFT
        ends[line, :] = filled
        found.canonical_ends[line] = form
        first = at
        while first < end and (buffer[first] == 32 or 9 <= buffer[first] <= 13):
            first += 1
        if first == end:
            status[line] = BLANK
            continue
        if end - at > limits[0]:
            continue
        slots[:] = NO_TEXT
        kinds[:] = NOTHING
        leaf_count, rows, after = _read_record(
            buffer, at, end, free, composed, limits, constants,
            children, child_hashes, child_names, child_nodes, node_slots, captures, node_flags, item_root, rest_only,
            slots, kinds, item_slots, item_kinds, leaves, frames, hashes, path,
        )  # fmt: skip
        if leaf_count < 0:
            continue
        outcome, after = _run(
            buffer, after, code, conditions, terms, condition_texts, maps, map_names, map_values, constants,
            slots, kinds, results, result_kinds,
        )  # fmt: skip
        if outcome != GOOD:
            status[line] = outcome
            continue
        is_refused = False
        for i in range(len(consents)):
            consent = results[first_consent + i]
            is_refused |= required[i] and consent != NO_TEXT and consent != constants[granted]
        if is_refused:
            status[line] = WITHHELD
            continue
        if given_tenant >= 0:
            results[TENANT] = constants[given_tenant]
        is_good = (
            results[TENANT] != NO_TEXT and results[ACTION] != NO_TEXT and results[ID] != NO_TEXT
            and results[TIME] != NO_TEXT and (results[USER] != NO_TEXT or results[ANONYMOUS] != NO_TEXT)
        )  # fmt: skip
        for i in range(TIME):
            is_good &= result_kinds[i] != HASHED and (results[i] == NO_TEXT or results[i] & _LENGTH <= limits[1])
        if not is_good or not _is_tenant(buffer, results[TENANT], no_tenant, limits[3]):
            continue
        micros = _instant(buffer, results[TIME], result_kinds[TIME], time_format)
        received = -1
        if received_format >= 0 and results[RECEIVED] != NO_TEXT:
            received = _instant(buffer, results[RECEIVED], result_kinds[RECEIVED], received_format)
            is_good = earliest <= received <= latest
        if not is_good or not earliest <= micros <= latest:
            continue
        # Attributes: those that the mapping names, what no path reads, facts of the group.
        in_group = group_when == -1 or (
            group_when >= 0 and _holds(buffer, group_when, conditions, terms, condition_texts, slots, constants)
        )
        in_traits = traits_when == -1 or (
            traits_when >= 0 and _holds(buffer, traits_when, conditions, terms, condition_texts, slots, constants)
        )
        count, kept, marks = 0, 0, 0
        for i in range(len(attributes)):
            text = results[FIRST_ATTRIBUTE + i]
            if text != NO_TEXT:
                is_good &= count < _MAX_MEMBERS and text & _LENGTH <= limits[1]
                if is_good:
                    members[0, count], members[1, count] = constants[attributes[i]], text
                    if result_kinds[FIRST_ATTRIBUTE + i] == HASHED:
                        hash_marks[marks] = members[0, count]
                        marks += 1
                    count += 1
        for i in range(leaf_count):
            name, text, capture, flags = leaves[i, 0], leaves[i, 1], leaves[i, 2], leaves[i, 3]
            if captures_rest[capture] and not flags & IS_READ:
                is_named = False
                for j in range(len(attributes)):
                    if _same(buffer, name, constants[attributes[j]]):
                        is_named = True
                        # One that is only named under a condition is the mapping's where that holds.
                        is_good &= not conditional[j] or results[FIRST_ATTRIBUTE + j] != NO_TEXT
                        break
                if not is_named:
                    is_good &= count < _MAX_MEMBERS
                    if is_good:
                        members[0, count], members[1, count] = name, text
                        count += 1
            if in_group and captures_group[capture] and (not group_only or flags & OF_GROUP):
                prefix = constants[group_prefix]
                length = (prefix & _LENGTH) + (name & _LENGTH)
                is_good &= count < _MAX_MEMBERS and length <= limits[1] and after + length <= len(buffer)
                for j in range(len(group_named)):
                    is_good &= not _same(buffer, name, constants[group_named[j]])
                if is_good:
                    members[0, count], members[1, count] = text_of(after, length), text
                    after = _copy(buffer, after, buffer, prefix >> LENGTH_BITS, prefix & _LENGTH)
                    after = _copy(buffer, after, buffer, name >> LENGTH_BITS, name & _LENGTH)
                    count += 1
        for i in range(count):
            kept += members[1, i] != NO_TEXT
        # With more there is one that counts what was left out.
        if not is_good or kept > limits[2] - 1 or not _sort_members(count, members, buffer):
            continue
        attrs, traits, consented, items = filled[0], filled[1], filled[2], filled[3]
        if attrs + kept > names.shape[1]:
            continue
        for i in range(count):
            if members[1, i] != NO_TEXT:
                names[0, attrs], values[0, attrs], found.hashed[attrs] = members[0, i], members[1, i], False
                for j in range(marks):
                    found.hashed[attrs] |= hash_marks[j] == members[0, i]
                attrs += 1
        count, kept = 0, 0
        if in_traits:
            for i in range(leaf_count):
                if captures_traits[leaves[i, 2]] and (not traits_only or leaves[i, 3] & OF_TRAITS):
                    members[0, count], members[1, count] = leaves[i, 0], leaves[i, 1]
                    kept += members[1, count] != NO_TEXT
                    count += 1
        if kept > limits[2] or not _sort_members(count, members, buffer) or traits + kept > names.shape[1]:
            continue
        for i in range(count):
            if members[1, i] != NO_TEXT:
                names[1, traits], values[1, traits] = members[0, i], members[1, i]
                traits += 1
        for i in range(len(consents)):
            if results[first_consent + i] != NO_TEXT:
                names[2, consented], values[2, consented] = constants[consents[i]], results[first_consent + i]
                consented += 1
        for row in range(rows):
            outcome, after = _run(
                buffer, after, item_code, conditions, terms, condition_texts, maps, map_names, map_values, constants,
                item_slots[row], item_kinds[row], item, item_of,
            )  # fmt: skip
            is_good &= outcome == GOOD and items < len(found.items)
            if is_good:
                is_good = _put_item(found.items, items, buffer, item, item_of, results, result_kinds, of_record, limits)
                items += 1
        if rows == 0 and results[of_record + ITEM_PARTS + ID_PART] != NO_TEXT:
            for part in range(ITEM_PARTS):
                item[part] = results[of_record + ITEM_PARTS + part]
                item_of[part] = result_kinds[of_record + ITEM_PARTS + part]
            is_good &= items < len(found.items)
            if is_good:
                is_good = _put_item(found.items, items, buffer, item, item_of, results, result_kinds, of_record, limits)
                items += 1
        room = 16
        for i in range(TIME):
            room += 6 * (results[i] & _LENGTH) + 4 if results[i] != NO_TEXT else 5
        if not is_good or form + room > len(found.canonical):
            continue
        status[line] = GOOD
        for i in range(TIME):
            fields[line, i] = results[i]
        found.micros[line], found.received[line] = micros, received
        out = found.canonical
        for part in range(5):
            field = (TENANT, ID, ANONYMOUS, USER, ACTION)[part]
            out[form] = 91 if part == 0 else 44
            if results[field] == NO_TEXT:
                form = _copy(out, form + 1, _NULL, 0, 4)
            else:
                form = _put_json(out, form + 1, buffer, results[field], end_of_lines)
        out[form] = 93
        form += 1
        found.canonical_ends[line] = form
        filled[0], filled[1], filled[2], filled[3] = attrs, traits, consented, items
        ends[line, :] = filled
        free = after
    return filled, form, free


@_compiled
def _put_item(items, at, buffer, item, kinds, results, result_kinds, of_record, limits):
    """Write an item, with what the record says of each; False when the record is left."""
    for part in range(ITEM_PARTS):
        text, kind = item[part], kinds[part]
        if text == NO_TEXT:
            text, kind = results[of_record + part], result_kinds[of_record + part]
        if text != NO_TEXT and (kind == HASHED or text & _LENGTH > limits[1]):
            return False
        if part in (QUANTITY_PART, PRICE_PART) and text != NO_TEXT and not _is_amount(buffer, text):
            return False
        items[at, part] = text
    return item[ID_PART] != NO_TEXT

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
    if whole == 0 or whole > 15 or (buffer[digits] == 48 and whole > 1):
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
        if at == fraction or last - fraction > 4:
            return -1, 0
        if last > fraction:
            is_whole = False
            length = last - first
    if at < end and (buffer[at] == 101 or buffer[at] == 69):
        return -1, 0
    if is_whole and is_negative and buffer[digits] == 48:
        return -1, 0
    if not is_whole and whole > 9:
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
    if size < 20 or text[at + 4] != 45 or text[at + 7] != 45 or text[at + 13] != 58 or text[at + 16] != 58:
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
    if text[at] == 46:
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
    if at + 1 == end and (text[at] == 90 or text[at] == 122):
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

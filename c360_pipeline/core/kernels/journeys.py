"""The loops of stitching, compiled: numbering of 128-bit keys, and the union-find with its guards.

Every function also runs as plain Python (`.py_func`), slowly.
"""

import numba as nb
import numpy as np

LINKED, ATTACHED, REFUSED_UNIQUE, REFUSED_SIZE = 0, 1, 2, 3
"""What became of a key of an event."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@nb.njit(nogil=True, cache=True)
def dense_ids(high, low):
    """Number 128-bit values by first appearance.

    Args:
        high: upper 64 bits of each.
        low: lower 64 bits of each; values of equal low bits are distinguished by the high ones.

    Returns:
        The number of each, and the places where each number appears first.
    """
    size = 16
    while size < 2 * len(low):
        size *= 2
    mask = np.uint64(size - 1)
    slots = np.full(size, -1, np.int32)
    first = np.empty(len(low), np.int32)
    ids = np.empty(len(low), np.int32)
    count = 0
    for i in range(len(low)):
        slot = (low[i] * _SPREAD >> np.uint64(17)) & mask
        while True:
            held = slots[slot]
            if held < 0:
                slots[slot] = count
                first[count] = i
                ids[i] = count
                count += 1
                break
            at = first[held]
            if low[at] == low[i] and high[at] == high[i]:
                ids[i] = held
                break
            slot = (slot + np.uint64(1)) & mask
    return ids, first[:count].copy()


@nb.njit(nogil=True, cache=True)
def find(parent, node):
    """The root of a node; the way to it is halved."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@nb.njit(nogil=True, cache=True)
def union_edges(left, right, size):
    """The smallest node of the connected component of each of `size` nodes."""
    parent = np.arange(size)
    for i in range(len(left)):
        a, b = find(parent, left[i]), find(parent, right[i])
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b
    for node in range(size):
        parent[node] = find(parent, node)
    return parent


@nb.njit(nogil=True, cache=True)
def fold_events(
    starts,
    key,
    weak,
    key_group,
    key_slot,
    same,
    group_journey,
    group_keys,
    group_unique,
    event_former,
    event_cap,
    journeys,
):
    """Assign events to groups, one after the other.

    The groups that are there come first, then those that events found, in the order of founding.

    Args:
        starts: place of each event's first key, and the number of places; events in the order of time.
        key: number of each key, those of an event from the strongest to the weakest.
        weak: whether it is weak there.
        key_group: group that holds each key, -1 for none; changed.
        key_slot: for each key the place of its type among the unique types, -1 for others.
        same: for each key the one that stands for all that are of the same person.
        group_journey: number of the journey of each group that is there.
        group_keys: linking keys of each group, with room for one group per event; changed.
        group_unique: key of each unique type of each group, as `same` has it, -1 for none; changed.
        event_former: number of the journey without a group that each event once founded, -1 for none.
        event_cap: keys that a merge of two groups may make, -1 for any number.
        journeys: how many numbers of journeys there are; a lower number is an older journey.

    Returns:
        The group of each event; what became of each key; the group that refused it, -1 for none; the group that each
        group is in now; the oldest journey of each group, -1 for none; the event that founded each group; and of each
        journey that met an older one the event and the place of the key where, -1 for none. Of groups that met, the
        first goes on.
    """
    events = len(starts) - 1
    there = len(group_journey)
    total = len(group_keys)
    parent = np.arange(total)
    oldest = np.full(total, -1, np.int64)
    oldest[:there] = group_journey
    founder = np.full(total, -1, np.int64)
    has_events = np.zeros(total, np.bool_)
    has_events[:there] = True
    met_event = np.full(journeys, -1, np.int64)
    met_place = np.full(journeys, -1, np.int64)
    event_group = np.empty(events, np.int64)
    outcome = np.zeros(len(key), np.int8)
    refuser = np.full(len(key), -1, np.int64)
    groups = there
    for e in range(events):
        group = np.int64(-1)
        for p in range(starts[e], starts[e + 1]):
            if weak[p]:
                continue
            k = key[p]
            holder = np.int64(-1) if key_group[k] < 0 else find(parent, key_group[k])
            if group < 0 and holder >= 0:
                group = holder
            if group < 0:
                group = groups
                groups += 1
                founder[group] = e
            if holder == group:
                continue
            slot = key_slot[k]
            if holder < 0:
                if slot >= 0 and 0 <= group_unique[group, slot] != same[k]:
                    outcome[p] = REFUSED_UNIQUE
                    refuser[p] = group
                    continue
                key_group[k] = group
                group_keys[group] += 1
                if slot >= 0:
                    group_unique[group, slot] = same[k]
                continue
            outcome[p] = _refusal(group, holder, has_events, group_keys, group_unique, event_cap[e])
            if outcome[p] != LINKED:
                refuser[p] = holder
                continue
            _meet(oldest, group, holder, e, p, met_event, met_place)
            group = _unite(parent, group, holder, has_events, group_keys, group_unique, oldest)
        if group < 0:
            for p in range(starts[e], starts[e + 1]):
                if key_group[key[p]] >= 0:
                    group = find(parent, key_group[key[p]])
                    break
        if group < 0:
            group = groups
            groups += 1
            founder[group] = e
        for p in range(starts[e], starts[e + 1]):
            if not weak[p]:
                continue
            outcome[p] = ATTACHED
            k = key[p]
            if key_group[k] < 0:
                key_group[k] = group
                continue
            home = find(parent, key_group[k])
            # Events that only a weak key holds go to the first journey that shows it beside a strong one.
            if home != group and group_keys[home] == 0 and group_keys[group] > 0:
                _meet(oldest, group, home, e, p, met_event, met_place)
                group = _unite(parent, group, home, has_events, group_keys, group_unique, oldest)
        former = event_former[e]
        if former >= 0:
            if oldest[group] >= 0:
                met_event[max(oldest[group], former)] = e
            oldest[group] = former if oldest[group] < 0 else min(oldest[group], former)
        event_group[e] = group
        has_events[group] = True
    for groups_of in (event_group, refuser, key_group):
        _to_roots(parent, groups_of)
    _to_roots(parent, parent)
    return event_group, outcome, refuser, parent, oldest, founder, met_event, met_place


@nb.njit(nogil=True, cache=True)
def _refusal(group, holder, has_events, group_keys, group_unique, cap):
    """Why two groups may not meet."""
    for slot in range(group_unique.shape[1]):
        a, b = group_unique[group, slot], group_unique[holder, slot]
        if a >= 0 and b >= 0 and a != b:
            return REFUSED_UNIQUE
    if cap >= 0 and has_events[group] and has_events[holder] and group_keys[group] + group_keys[holder] > cap:
        return REFUSED_SIZE
    return LINKED


@nb.njit(nogil=True, cache=True)
def _meet(oldest, a, b, event, place, met_event, met_place):
    """Where two groups meet that are journeys both, the younger journey ends."""
    if oldest[a] >= 0 and oldest[b] >= 0:
        loser = max(oldest[a], oldest[b])
        met_event[loser] = event
        met_place[loser] = place


@nb.njit(nogil=True, cache=True)
def _unite(parent, a, b, has_events, group_keys, group_unique, oldest):
    """Put two roots together; returns the one that stays, which is the first."""
    root, child = min(a, b), max(a, b)
    parent[child] = root
    has_events[root] = has_events[root] or has_events[child]
    group_keys[root] += group_keys[child]
    for slot in range(group_unique.shape[1]):
        if group_unique[root, slot] < 0:
            group_unique[root, slot] = group_unique[child, slot]
    if oldest[root] < 0 or (0 <= oldest[child] < oldest[root]):
        oldest[root] = oldest[child]
    return root


@nb.njit(nogil=True, cache=True)
def _to_roots(parent, groups):
    for i in range(len(groups)):
        if groups[i] >= 0:
            groups[i] = find(parent, groups[i])


@nb.njit(nogil=True, cache=True)
def same_pairs(starts, key, slot):
    """Each two keys of one unique type that an event has: it says that they are one person.

    Args:
        starts: place of each event's first key, and the number of places.
        key: number of the key at each place.
        slot: for each key the place of its type among the unique types, -1 for others.
    """
    left, right = [nb.int64(0) for _ in range(0)], [nb.int64(0) for _ in range(0)]
    for e in range(len(starts) - 1):
        for p in range(starts[e], starts[e + 1]):
            if slot[key[p]] < 0:
                continue
            for q in range(p + 1, starts[e + 1]):
                if slot[key[q]] == slot[key[p]]:
                    left.append(key[p])
                    right.append(key[q])
    return np.array(left, np.int64), np.array(right, np.int64)


@nb.njit(nogil=True, cache=True)
def partner_pairs(starts, key):
    """Each pair of keys of an event, the smaller number first; keys of an event are different."""
    count = 0
    for e in range(len(starts) - 1):
        size = starts[e + 1] - starts[e]
        count += size * (size - 1) // 2
    left, right = np.empty(count, np.int64), np.empty(count, np.int64)
    at = 0
    for e in range(len(starts) - 1):
        for p in range(starts[e], starts[e + 1]):
            for q in range(p + 1, starts[e + 1]):
                left[at] = min(key[p], key[q])
                right[at] = max(key[p], key[q])
                at += 1
    return left, right


@nb.njit(nogil=True, cache=True)
def order_by_event(event, strength, high, low, events):
    """Put keys in the order of their events, those of an event from the strongest to the weakest.

    Args:
        event: number of the event of each key.
        strength: of each key, the lowest is the strongest; equal ones are ordered by value.
        high: upper 64 bits of each key.
        low: its lower 64 bits.
        events: how many there are.

    Returns:
        The place of each event's first key and the number of places; and the key at each place.
    """
    starts = np.zeros(events + 1, np.int64)
    for i in range(len(event)):
        starts[event[i] + 1] += 1
    for e in range(events):
        starts[e + 1] += starts[e]
    filled = starts[:-1].copy()
    order = np.empty(len(event), np.int64)
    for i in range(len(event)):
        at = filled[event[i]]
        first = starts[event[i]]
        filled[event[i]] += 1
        while at > first and _is_weaker(order[at - 1], i, strength, high, low):
            order[at] = order[at - 1]
            at -= 1
        order[at] = i
    return starts, order


@nb.njit(nogil=True, cache=True)
def _is_weaker(a, b, strength, high, low):
    if strength[a] != strength[b]:
        return strength[a] > strength[b]
    if high[a] != high[b]:
        return high[a] > high[b]
    return low[a] > low[b]


@nb.njit(nogil=True, cache=True)
def pair_hashes(left, right, high, low):
    """64 bits for each unordered pair of keys."""
    hashes = np.empty(len(left), np.uint64)
    for i in range(len(left)):
        a, b = _mixed(high[left[i]], low[left[i]]), _mixed(high[right[i]], low[right[i]])
        hashes[i] = _mixed(min(a, b), max(a, b))
    return hashes


@nb.njit(nogil=True, cache=True)
def event_fingerprints(starts, key, high, low, ts):
    """64 bits of the time and the keys of each event; the order of keys does not matter.

    Args:
        starts: place of each event's first key, and the number of places.
        key: number of the key at each place.
        high: upper 64 bits of each key.
        low: its lower 64 bits.
        ts: microseconds of each event.
    """
    prints = np.empty(len(ts), np.uint64)
    for e in range(len(ts)):
        total = _mixed(np.uint64(ts[e]), _SPREAD)
        for p in range(starts[e], starts[e + 1]):
            total += _mixed(high[key[p]], low[key[p]])
        prints[e] = total
    return prints


@nb.njit(nogil=True, cache=True)
def different_pairs(left, right):
    """Each pair once, sorted."""
    order = np.sort((left << 32) | right)
    count = 0
    for i in range(len(order)):
        if i == 0 or order[i] != order[i - 1]:
            order[count] = order[i]
            count += 1
    return order[:count] >> 32, order[:count] & 0xFFFFFFFF


@nb.njit(nogil=True, cache=True)
def _mixed(high, low):
    value = (high ^ (low * _SPREAD)) + _SPREAD
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


_HYPHENS = (8, 13, 18, 23)
_DIGITS = np.array([n for n in range(36) if n not in _HYPHENS])
_VALUES = np.full(256, 255, np.uint8)
_VALUES[[ord(digit) for digit in "0123456789abcdef"]] = range(16)
_LETTERS = np.array([ord(digit) for digit in "0123456789abcdef"], np.uint8)


@nb.njit(nogil=True, cache=True)
def uuid_words(letters, ends, is_there):
    """The two halves of UUIDs in lower case, 0 where there is none; and the first that is no UUID, or -1.

    Args:
        letters: bytes of all texts.
        ends: where each begins, and the end of the last.
        is_there: which are not null.
    """
    high, low = np.zeros(len(is_there), np.uint64), np.zeros(len(is_there), np.uint64)
    for i in range(len(is_there)):
        if not is_there[i]:
            continue
        if ends[i + 1] - ends[i] != 36:
            return high, low, i
        text = letters[ends[i] : ends[i + 1]]
        wrong = (text[8] ^ 45) | (text[13] ^ 45) | (text[18] ^ 45) | (text[23] ^ 45)
        upper, lower = np.uint64(0), np.uint64(0)
        for n in range(16):
            a, b = _VALUES[text[_DIGITS[n]]], _VALUES[text[_DIGITS[n + 16]]]
            upper, lower = (upper << np.uint64(4)) | np.uint64(a), (lower << np.uint64(4)) | np.uint64(b)
            wrong |= (a | b) & 0xF0
        if wrong:
            return high, low, i
        high[i], low[i] = upper, lower
    return high, low, -1


@nb.njit(nogil=True, cache=True)
def uuid_letters(high, low):
    """The bytes of UUIDs in lower case, 36 each."""
    letters = np.full(36 * len(high), 45, np.uint8)
    for i in range(len(high)):
        text = letters[36 * i : 36 * i + 36]
        upper, lower = high[i], low[i]
        for n in range(15, -1, -1):
            text[_DIGITS[n]] = _LETTERS[upper & np.uint64(15)]
            text[_DIGITS[n + 16]] = _LETTERS[lower & np.uint64(15)]
            upper >>= np.uint64(4)
            lower >>= np.uint64(4)
    return letters

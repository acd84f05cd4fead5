import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice

import polars as pl
import pytest

from c360_pipeline.assets.landing import read_catalog
from c360_pipeline.core.arrays.row_hashes import user_hash
from c360_pipeline.core.catalog.tables import EVENTS, LANDING_FILES
from c360_pipeline.core.landing.accounting import (
    QUEUE_COUNTED_BY,
    FileAccount,
    closed_accounts,
    lost_deliveries,
    misaccounted,
    misaccounted_dead,
    settled,
    unbalanced,
)
from c360_pipeline.core.landing.classify import (
    ARCHIVED_FACTS,
    archive_changes,
    classify,
    split_suppressed,
    stored_events,
)
from c360_pipeline.core.landing.decode import decode, rejected_conflicts
from c360_pipeline.core.landing.lines import LONGEST_LINE_BYTES, Delivery, LineBlock, LongLine, line_blocks, line_in
from c360_pipeline.core.landing.suppressed import Suppressed
from c360_pipeline.errors import ContractError

NOW = datetime(2025, 11, 3, tzinfo=UTC)
NOTHING_ARCHIVED = EVENTS.empty().select(ARCHIVED_FACTS)
FILE, OTHER_FILE, FILE_AGAIN = Delivery("f", "1"), Delivery("g", "1"), Delivery("f", "2")


def line(**changes: object) -> bytes:
    fields = {"tenantId": "acme", "userId": "u", "sessionId": "s", "ts": 1762077600000, "action": "view"} | changes
    return json.dumps(fields).encode()


def block(*lines: bytes, delivery: Delivery = FILE) -> LineBlock:
    return LineBlock(delivery, 1, 0, b"\n".join(lines) + b"\n")


def events(*lines: bytes, delivery: Delivery = FILE) -> pl.DataFrame:
    return decode(block(*lines, delivery=delivery), NOW).events


def facts(archive: pl.DataFrame) -> pl.DataFrame:
    return stored_events(archive).select(ARCHIVED_FACTS)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n", [(1, 0, b"a"), (2, 2, b"b")]),
        (b"a\nb", [(1, 0, b"a"), (2, 2, b"b")]),
        (b"a\r\n\r\n \nb\n", [(1, 0, b"a\r"), (4, 7, b"b")]),
        (b"\xef\xbb\xbfa\n", [(1, 3, b"a")]),
        (b"", []),
        (b"\n\n", []),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_lines_are_numbered_and_placed(content: bytes, expected: list[tuple[int, int, bytes]], size: int) -> None:
    pieces = [content[n : n + size] for n in range(0, len(content), size)]
    found = [b.line(n) for b in line_blocks(FILE, pieces) if isinstance(b, LineBlock) for n in range(len(b.starts) - 1)]
    assert [(one.number, one.offset, one.raw) for one in found if one.raw.strip()] == expected


def test_a_line_that_does_not_fit_into_memory_is_handed_out_in_pieces() -> None:
    piece = b"x" * 1024 * 1024
    many = LONGEST_LINE_BYTES // len(piece) + 6
    pieces = chain([b"{}\n\n"], (piece for _ in range(many)), [b"yy\n[]\n", b"1"])
    seen: list[tuple[int, int, int | list[bytes]]] = []
    for item in line_blocks(FILE, pieces):
        if isinstance(item, LongLine):
            seen.append((item.number, item.offset, sum(len(part) for part in item.pieces)))
        else:
            seen.append((item.first_number, item.first_offset, [item.line(n).raw for n in range(len(item.starts) - 1)]))
    length = many * len(piece) + 2
    assert seen == [(1, 0, [b"{}", b""]), (3, 4, length), (4, 4 + length + 1, [b"[]"]), (5, 4 + length + 4, [b"1"])]


def test_a_file_that_breaks_off_hands_out_what_there_is_of_its_last_line() -> None:
    def broken() -> Iterator[bytes]:
        yield b"{}\n[1"
        raise ContractError("f is not a whole gzip file")

    found = line_blocks(FILE, broken())
    contents = [b.content for b in islice(found, 2) if isinstance(b, LineBlock)]
    assert contents == [b"{}\n", b"[1"]
    with pytest.raises(ContractError, match="f is not a whole"):
        next(found)


def test_catalogues_are_composed_and_name_what_is_wrong() -> None:
    header = "tenant_id,id,name,category,price\n"
    catalog = read_catalog(f"{header}acme,e\u0301,Lamp,,9.5\n".encode(), "f").rows
    assert catalog.select("id", "category", "price").row(0) == ("é", None, 9.5)
    for wrong in ("id,name\n1,2\n", ""):
        with pytest.raises(ContractError, match="f is not a catalogue"):
            read_catalog(wrong.encode(), "f")


def test_one_bad_price_takes_no_other_product_along() -> None:
    good = "".join(f"acme,p{n},Lamp,lights,{n}.5\n" for n in range(499))
    content = f"tenant_id,id,name,category,price\n{good}acme,odd,Lamp,lights,on request\n,x,,,1\nacme,nan,,,NaN\n"
    read = read_catalog(content.encode(), "f")
    assert read.rows.height == 499
    assert read.unusable["id"].to_list() == ["odd", "nan"]
    assert read.problems == [
        "f row 501: the price of product 'odd' is 'on request', which is no number",
        "f row 503: the price of product 'nan' is 'NaN', which is no number",
        "f row 502: a product needs a tenant_id and an id",
    ]


def test_carriage_returns_are_harmless() -> None:
    assert events(line() + b"\r").height == 1


def test_every_line_is_an_event_or_rejected() -> None:
    bad = [b"{nonsense", b"\xff" + line(), "ünï".encode(), b"\xc3"]
    decoded = decode(block(line(), *bad, line(userId="é")), NOW)
    assert decoded.events["source_line"].to_list() == [1, 6]
    letter = decoded.rejected.row(0, named=True)
    assert (letter["source_line"], letter["byte_offset"], letter["raw"]) == (2, len(line()) + 1, b"{nonsense")
    assert letter["dead_letter_id"] == hashlib.sha256(b"{nonsense").hexdigest()
    assert (letter["error_class"], letter["status"]) == ("invalid_json", "open")
    assert decoded.rejected["raw"].to_list() == bad
    assert decoded.rejected["error_class"].to_list() == ["invalid_json", "invalid_utf8", "invalid_json", "invalid_utf8"]
    assert decoded.lines == {FILE: 6}


def test_the_first_of_equal_events_lands() -> None:
    both = pl.concat([events(line(), line()), events(line(), delivery=OTHER_FILE)])
    classified = classify(both, NOTHING_ARCHIVED)
    assert classified.to_append["source_line"].to_list() == [1]
    assert classified.duplicates.select("source_uri", "source_line").rows() == [("f", 2), ("g", 1)]


def test_an_interrupted_try_counts_as_landed_and_is_not_appended_again() -> None:
    read = events(line(), line(userId="v"))
    classified = classify(read, facts(read.head(1)))
    assert classified.landed.height == 2
    assert classified.to_append["user_id"].to_list() == ["v"]
    assert classified.duplicates.is_empty()


def test_a_file_delivered_anew_under_its_name_is_not_landed_twice() -> None:
    first = events(line(), line(userId="v"))
    again = events(line(), line(userId="v"), line(userId="w"), delivery=FILE_AGAIN)
    classified = classify(again, facts(first))
    assert classified.duplicates["source_line"].to_list() == [1, 2]
    assert classified.landed["source_line"].to_list() == [3]
    # The second delivery is interrupted before its account is closed: what it landed is not taken for a repetition.
    after_a_crash = classify(again, facts(pl.concat([first, classified.to_append])))
    assert after_a_crash.landed["source_line"].to_list() == [3]
    assert after_a_crash.to_append.is_empty()


def test_a_changed_line_under_the_same_id_and_place_is_a_conflict() -> None:
    first = events(line(eventId="e"))
    changed = events(line(eventId="e", action="purchase"))
    classified = classify(changed, facts(first))
    assert (classified.landed.height, classified.duplicates.height, classified.conflicts.height) == (0, 0, 1)


def test_another_event_under_a_taken_id_is_a_conflict() -> None:
    read = block(line(eventId="e"), line(eventId="e", action="purchase"), line(eventId="e"))
    classified = classify(decode(read, NOW).events, NOTHING_ARCHIVED)
    assert classified.duplicates["source_line"].to_list() == [3]
    letter = rejected_conflicts(classified.conflicts, partial(line_in, [read]), NOW).row(0, named=True)
    assert letter["error_class"] == "duplicate_id_conflict"
    assert "line 1 of f" in letter["reason"]
    assert letter["raw"] == line(eventId="e", action="purchase")
    assert letter["byte_offset"] == len(line(eventId="e")) + 1


def test_an_id_that_is_the_hash_of_another_event_is_a_conflict() -> None:
    first = events(line())
    stranger = events(line(userId="v", eventId=first["event_id"][0]))
    assert classify(stranger, facts(first)).conflicts.height == 1
    assert classify(first, facts(stranger)).conflicts.height == 1
    itself = events(line(eventId=first["event_id"][0]), delivery=OTHER_FILE)
    assert classify(itself, facts(first)).duplicates.height == 1


def test_the_same_id_of_two_tenants_is_no_conflict() -> None:
    read = events(line(eventId="e"), line(eventId="e", tenantId="globex"))
    assert classify(read, NOTHING_ARCHIVED).to_append.height == 2


def test_a_hash_that_is_the_id_is_not_kept_twice() -> None:
    kept = stored_events(events(line(), line(eventId="e")))
    assert kept["content_hash"].is_null().to_list() == [True, False]


def test_suppressed_users_are_parted_from_the_others() -> None:
    read = decode(block(line(), line(userId="v"), line(tenantId="globex"), line(action=[]), b"{"), NOW)
    listed = pl.DataFrame({"tenant_id": ["acme"], "user_id": ["u"]}).select("tenant_id", user_hash=user_hash())
    rest, silent = split_suppressed(read.events, Suppressed(listed))
    assert (rest["source_line"].to_list(), silent["source_line"].to_list()) == ([2, 3], [1])
    rest, silent = split_suppressed(read.rejected, Suppressed(listed))
    assert (rest["source_line"].to_list(), silent["source_line"].to_list()) == ([5], [4])
    rest, silent = split_suppressed(read.events, Suppressed())
    assert (rest.height, silent.height) == (3, 0)


def test_the_difference_is_what_changed_and_what_is_gone() -> None:
    before = events(line(userId="a"), line(userId="b"), line(userId="c", eventId="e"))
    after = events(line(userId="z", action=" "), line(userId="b"), line(userId="c", eventId="e", action="buy"))
    changed, gone = archive_changes(stored_events(before), after)
    assert changed["source_line"].to_list() == [3]
    assert gone["source_line"].to_list() == [1]
    assert archive_changes(stored_events(before), before)[0].is_empty()


def accounts(*rows: FileAccount) -> pl.DataFrame:
    return closed_accounts(list(rows), NOW)


def test_files_whose_rows_are_missing_are_found() -> None:
    kept = accounts(
        *(
            FileAccount(uri, etag, NOW.date(), landed=n)
            for uri, etag, n in [("a", "1", 2), ("a", "2", 1), ("b", "1", 5), ("c", "1", 0)]
        )
    )
    archived = pl.DataFrame({"source_uri": ["a", "b", "unbooked"], "archived": [3, 4, 9]})
    assert misaccounted(kept, archived)["source_uri"].to_list() == ["b"]


def test_a_file_that_lost_a_line_is_found() -> None:
    kept = accounts(
        FileAccount("a", "1", NOW.date(), lines=3, landed=1, duplicates=1, dead=1),
        FileAccount("b", "1", NOW.date(), lines=3, landed=1, dead=1),
    )
    assert unbalanced(kept)["source_uri"].to_list() == ["b"]
    assert unbalanced(LANDING_FILES.empty()).is_empty()


def queue(*rows: tuple[Delivery, str]) -> pl.DataFrame:
    table = [(*delivery, outcome, 1) for delivery, outcome in rows]
    return pl.DataFrame(table, schema=dict.fromkeys(QUEUE_COUNTED_BY, pl.String) | {"len": pl.Int64}, orient="row")


def test_books_are_settled_by_what_became_of_dead_lines_however_often() -> None:
    kept = accounts(
        FileAccount("f", "1", NOW.date(), lines=9, landed=5, dead=4), FileAccount("g", "1", NOW.date(), lines=1, dead=1)
    )
    lines = queue((FILE, "landed"), (FILE, "duplicate"), (FILE, "suppressed"), (FILE, "dead"), (OTHER_FILE, "dead"))
    assert misaccounted_dead(kept, lines)["source_uri"].to_list() == ["f"]
    (row,) = settled(kept, lines).iter_rows(named=True)
    assert (row["lines"], row["landed"], row["duplicates"], row["dead"], row["suppressed"]) == (9, 6, 1, 1, 1)
    after = pl.concat([settled(kept, lines), kept.tail(1)])
    assert settled(after, lines).is_empty()
    assert misaccounted_dead(after, lines).is_empty()


def test_deliveries_without_book_and_file_are_lost() -> None:
    kept = accounts(FileAccount("f", "1", NOW.date()))
    archived = pl.DataFrame([FILE, FILE_AGAIN, OTHER_FILE], schema=["source_uri", "source_etag"], orient="row")
    assert lost_deliveries(kept, archived, queue(), {OTHER_FILE}) == [FILE_AGAIN]

from datetime import UTC, datetime, timedelta

from c360_pipeline.reads.customers import page_of

NOW = datetime(2025, 11, 1, tzinfo=UTC)


def entries(*minutes: int) -> list[dict[str, object]]:
    return [{"at": NOW - timedelta(minutes=m), "id": n} for n, m in enumerate(minutes)]


def test_a_page_does_not_tear_a_moment_apart() -> None:
    page, is_more = page_of(entries(0, 1, 2, 2, 3), 3)
    assert ([e["id"] for e in page], is_more) == ([0, 1], True)


def test_all_of_one_moment_is_shown_though_there_is_no_room() -> None:
    page, is_more = page_of(entries(0, 0, 0), 2)
    assert ([e["id"] for e in page], is_more) == ([0, 1, 2], False)
    page, is_more = page_of(entries(0, 0, 0, 1), 2)
    assert ([e["id"] for e in page], is_more) == ([0, 1, 2], True)


def test_the_last_page_says_that_there_are_no_more() -> None:
    assert page_of(entries(0, 1), 2) == (entries(0, 1), False)

import threading

from dagster_processes import wait_until

from c360_pipeline.errors import UnavailableError
from c360_pipeline.stages.realtime.later import Later, WrittenLater

LONG = 3_600.0


def test_items_are_written_in_batches_and_before_their_time_where_many_wait() -> None:
    written: list[list[int]] = []
    later = WrittenLater("test", written.append, 3, 100, LONG, LONG)
    assert all(later.take(number) for number in range(2))
    assert written == []
    assert later.take(2)
    wait_until(lambda: written, 30)
    assert later.take(3)
    later.close()
    assert written == [[0, 1, 2], [3]]


def test_what_cannot_be_written_waits_and_what_is_too_much_is_dropped() -> None:
    written: list[int] = []
    is_away = threading.Event()
    is_away.set()

    def write(batch: list[int]) -> None:
        if is_away.is_set():
            raise UnavailableError("away")
        written.extend(batch)

    later = WrittenLater("test", write, 2, 3, LONG, 0.01)
    assert [later.take(number) for number in range(5)] == [True, True, True, False, False]
    assert not later.write_waiting()
    is_away.clear()
    wait_until(lambda: written == [0, 1, 2], 30)
    later.close()
    assert written == [0, 1, 2]


def test_work_that_was_not_all_done_is_done_again_and_close_does_not_wait_for_it() -> None:
    calls: list[int] = []

    def work() -> bool:
        calls.append(1)
        return len(calls) == 2

    later = Later("test", work, 0, 0.01)
    later.ask()
    wait_until(lambda: len(calls) == 2, 30)
    later.close()
    slow = Later("test", lambda: False, 0, LONG)
    slow.ask()
    slow.close()
    assert slow.is_closing

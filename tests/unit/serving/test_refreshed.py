"""What is asked in the background: nobody waits for it, and what fails leaves the last answer."""

import logging
import threading

import pytest

from c360_pipeline.errors import UnavailableError
from c360_pipeline.serving import backend
from c360_pipeline.serving.backend import Refreshed


def settled(refreshed: Refreshed[int]) -> int:
    """The value when what is under way has ended."""
    before = refreshed.value()
    if refreshed._asked is not None:
        refreshed._asked.exception(10)
        return refreshed.value()
    return before


def test_the_first_waits_for_a_moment_and_what_fails_leaves_the_last_answer(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([1, UnavailableError("S3 is away"), OSError("a disk is full"), 4])

    def read() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    refreshed = Refreshed(read, 0, 0.0)
    with caplog.at_level(logging.WARNING):
        assert refreshed.value() == 1
        assert [settled(refreshed) for _ in range(3)] == [1, 1, 4]
    refreshed.close()
    assert "S3 is away" in caplog.text
    assert "a disk is full" in caplog.text


def test_nobody_waits_for_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "FIRST_SECONDS", 0.05)
    answered = threading.Event()

    def read() -> int:
        answered.wait(30)
        return 2

    refreshed = Refreshed(read, 0, 60.0)
    assert refreshed.value() == 0
    assert refreshed.value() == 0
    answered.set()
    assert settled(refreshed) == 2
    refreshed.close()


def test_it_is_asked_again_only_when_it_is_due() -> None:
    asked: list[int] = []
    refreshed = Refreshed(lambda: asked.append(1) or len(asked), 0, 60.0)
    assert [refreshed.value() for _ in range(5)] == [1] * 5
    assert asked == [1]
    refreshed.close()

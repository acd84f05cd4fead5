"""Instants as producers write them, made into what the event contract reads."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

from c360_pipeline.core.contract.events import EPOCH, INSTANT_WITHOUT_ZONE
from c360_pipeline.core.sources.values import text_of

_DIGITS_OF_MICROS = {"epoch_s": 6, "epoch_ms": 3, "epoch_us": 0, "epoch_ns": -3}
FORMATS = ("rfc3339", "utc", *_DIGITS_OF_MICROS)
"""`rfc3339`: with an offset, or epoch milliseconds, as the contract; `utc`: a date and time without an offset, which is
UTC; `epoch_s`, `epoch_ms`, `epoch_us`, `epoch_ns`: a number or its text."""


def reader(name: str) -> Callable[[Any], Any]:
    """A function from a value to what the contract reads; what it can't read goes on, for the contract to refuse."""
    if name == "rfc3339":
        return lambda value: value
    if name == "utc":
        return _utc
    digits = _DIGITS_OF_MICROS[name]
    return lambda value: _epoch(value, digits)


def _utc(value: Any) -> Any:
    return f"{value.strip()}Z" if isinstance(value, str) and INSTANT_WITHOUT_ZONE.fullmatch(value.strip()) else value


def _epoch(value: Any, digits: int) -> Any:
    text = text_of(value) if not isinstance(value, bool) else None
    try:
        micros = int(Decimal(text or "").scaleb(digits))
        return (EPOCH + timedelta(microseconds=micros)).isoformat()
    except (ArithmeticError, ValueError):
        return value


def hint(value: Any) -> str:
    """What a mapping could say so that this value is read; empty where nothing is known."""
    text = (text_of(value) or "").strip()
    if INSTANT_WITHOUT_ZONE.fullmatch(text):
        return "; it has no offset: say as: utc, if it is UTC"
    if text.removeprefix("-").replace(".", "", 1).isdigit():
        whole = len(text.partition(".")[0])
        for name, length in (("epoch_s", 10), ("epoch_ms", 13), ("epoch_us", 16), ("epoch_ns", 19)):
            if whole == length:
                return f"; it looks like as: {name}"
    return ""

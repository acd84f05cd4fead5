"""Which preset the records of a file are of, by what they have."""

from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from c360_pipeline.core.contract.events import Rejected, load_object
from c360_pipeline.core.sources.records import CSV, LINES, PARQUET, TSV, Framing
from c360_pipeline.core.sources.values import Place, at_path, steps_of
from c360_pipeline.errors import ContractError
from c360_pipeline.stages.sources.presets import Preset, presets
from c360_pipeline.stages.sources.reading import first_bytes, record_lines

LOOKED_AT = 200
"""Records of a file."""
OWN = "contract"
"""Events in this project's own form, which need no source."""
OWN_FORM = {"tenantId": 3, "ts": 2, "action": 2, "userId": 1}


@dataclass(frozen=True)
class Guess:
    """A preset that a file may be of.

    Attributes:
        preset: its name, or `contract`.
        share: from 0 to 1, how much of what tells such records these have.
        framing: in which they were read.
        found: paths that told it, the most telling first.
    """

    preset: str
    share: float
    framing: Framing
    found: tuple[str, ...]


def detect(path: Path) -> list[Guess]:
    """The presets that a file may be of, the likeliest first.

    Raises:
        ContractError: no record can be read in any framing; the message says what the file looks like.
    """
    guesses = []
    for framing in _framings(path):
        records = _records(path, framing)
        if not records:
            continue
        own = _guess(OWN, OWN_FORM, records, framing)
        of_presets = [
            _guess(name, one.known_by, records, framing) for name, one in presets().items() if _fits(one, framing)
        ]
        guesses += [guess for guess in (own, *of_presets) if guess.share > 0]
    if not guesses:
        raise ContractError(
            f"{path.name} has no records that can be read as JSON, a table or Parquet. Look at its first bytes: "
            f"{first_bytes(path, 40)!r}"
        )
    return sorted(guesses, key=lambda guess: (-guess.share, -len(guess.found), guess.preset))


def _fits(preset: Preset, framing: Framing) -> bool:
    return preset.framing == framing if preset.framing.columns else preset.framing.kind == framing.kind


def _framings(path: Path) -> list[Framing]:
    start = first_bytes(path, 4)
    if start == b"PAR1":
        return [Framing(PARQUET)]
    with_columns = [one.framing for one in presets().values() if one.framing.columns]
    return [Framing(LINES), *dict.fromkeys(with_columns), Framing(TSV), Framing(CSV)]


def _records(path: Path, framing: Framing) -> list[dict[str, Any]]:
    """The first records of a file; none where it is in no such framing."""
    found: list[dict[str, Any]] = []
    broken = 0
    # What there is before it breaks off tells as much.
    with suppress(ContractError):
        for line in islice(record_lines(path, framing), LOOKED_AT):
            try:
                found.append(load_object(line))
            except Rejected:
                broken += 1
    return found if len(found) > broken else []


def _guess(name: str, known_by: Any, records: list[dict[str, Any]], framing: Framing) -> Guess:
    paths = {path: (steps_of(path, Place(name)), weight) for path, weight in known_by.items()}
    having = {
        path: sum(at_path(record, steps) is not None for record in records) / len(records)
        for path, (steps, _) in paths.items()
    }
    total = sum(weight for _, weight in paths.values())
    share = sum(weight * having[path] for path, (_, weight) in paths.items()) / total
    found = sorted((path for path in paths if having[path]), key=lambda path: (-paths[path][1] * having[path], path))
    return Guess(name, round(share, 3), framing, tuple(found))

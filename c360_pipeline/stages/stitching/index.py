"""What stitching knows, as an index on this machine, so that a batch costs what it holds and not what there is.

The index is a cache of the log of stitching (`core.stitching.log`): it may be lost at any time and is then rebuilt. It
is of one snapshot of the log: for each tenant up to one commit. Processes share it: files never change, and the list of
those that count is replaced as a whole.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import polars as pl

from c360_pipeline.core.arrays.row_hashes import words
from c360_pipeline.core.kernels import journeys as kernel
from c360_pipeline.core.stitching.batch import KNOWN_JOURNEY, Batch, Known, Stitched
from c360_pipeline.core.stitching.journey_ids import id_words, ids_of_words
from c360_pipeline.core.stitching.keys import UNKEYED
from c360_pipeline.core.stitching.log import ALIAS, COMMIT, EVENT, JOURNEY, KEY, REMOVED, Gone
from c360_pipeline.core.stitching.statuses import LINKED
from c360_pipeline.stages.stitching.index_rows import (
    ALIASES,
    EVENTS,
    JOURNEYS,
    KEYS,
    PAIRS,
    Facts,
    _at,
    _rows_of_aliases,
    _rows_of_commits,
    _rows_of_events,
    _rows_of_journeys,
    _rows_of_keys,
    _states,
    _without_events,
    event_words,
    fingerprints,
)
from c360_pipeline.stores.local.sorted_index import Ints, Rows, SortedRuns, StagedRun, Words

KINDS = {"keys": KEYS, "events": EVENTS, "journeys": JOURNEYS, "aliases": ALIASES, "pairs": PAIRS}
FORMAT, READABLE = 3, (2, 3)
"""Of the files that are written, and of those that are read; an index of another is rebuilt."""
LIST, LOCK = "index.json", "lock"
LOADS = 5
"""Times that a list is read whose files another process merges meanwhile."""
UNNAMED_SECONDS = 120.0
"""Files without a name in the list are swept after as many seconds."""
WRITERS = 2
"""Runs that are sorted and written at once."""
Staged = Mapping[str, StagedRun | None]
"""By kind, what the index is to take up."""


@dataclass(frozen=True)
class TenantState:
    """How far a tenant is stitched.

    Attributes:
        seq: number of its last commit; 0 before the first.
        detail: what that commit says.
    """

    seq: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identifiers(self) -> str:
        """Of which secret its keys are, as `IdentifierKeys.name`; a log of an earlier release has none."""
        return str(self.detail.get("identifiers", UNKEYED.name))


Stamp = tuple[int, int, int]
"""Inode, time of the last change in nanoseconds, bytes: lists are replaced and never changed."""


def _stamp(of: os.stat_result) -> Stamp:
    return of.st_ino, of.st_mtime_ns, of.st_size


class JourneyIndex:
    """The index of one log.

    Args:
        folder: of this log; created when it is first written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = {kind: SortedRuns(folder, layout) for kind, layout in KINDS.items()}
        self._tenants: dict[str, TenantState] = {}
        self._files: set[str] = set()
        self._stamp: Stamp | None = None

    def tenant(self, tenant_id: str) -> TenantState:
        """How far a tenant is stitched."""
        return self._tenants.get(tenant_id, TenantState())

    @property
    def files(self) -> set[str]:
        """Files of the log that are in the index."""
        return self._files

    @property
    def seqs(self) -> dict[str, int]:
        """Number of the last commit of each tenant."""
        return {tenant: state.seq for tenant, state in self._tenants.items()}

    def load(self) -> None:
        """Take up what is on disk; what another process added counts too. What can't be read counts as lost."""
        for _ in range(LOADS):
            try:
                with (self._folder / LIST).open(encoding="utf-8") as listed:
                    stamp, said = _stamp(os.fstat(listed.fileno())), json.load(listed)
                if said.get("format") not in READABLE:
                    break
                for kind, runs in self._runs.items():
                    runs.load(said["runs"][kind])
            except FileNotFoundError:
                continue  # another process merged a run meanwhile, and wrote a new list before it did away with it
            except (ValueError, KeyError):
                break
            self._stamp = stamp
            self._files = set(said["files"])
            self._tenants = {name: TenantState(seq, detail) for name, (seq, detail) in said["tenants"].items()}
            return
        self.forget()

    def is_newest(self) -> bool:
        """Whether no other process has written the list since it was loaded."""
        return self._written() == self._stamp

    def _written(self) -> "Stamp | None":
        """By what the list on disk is distinguished from others; None when there is none."""
        try:
            return _stamp((self._folder / LIST).stat())
        except FileNotFoundError:
            return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process at a time writes the list."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def forget(self) -> None:
        """Begin again: the log is another than the index was made from."""
        self._runs = {kind: SortedRuns(self._folder, layout) for kind, layout in KINDS.items()}
        self._tenants, self._files = {}, set()
        self._stamp = self._written()

    def absorb(self, rows: pl.DataFrame, files: set[str]) -> bool:
        """Take up rows of the log; False where another process was faster, as in `adopt`.

        Args:
            rows: whole commits, none of which is in the index.
            files: all files of the log that are in the index now.
        """
        commits = rows.filter(pl.col("kind") == COMMIT).sort("seq").select("tenant_id", "seq", "detail")
        return self.adopt(self._staged(self._rows_of(rows)) if rows.height else {}, commits, files)

    def stage(self, batch: Batch, stitched: Stitched, gone: Gone) -> Staged:
        """Write what the index is after a decision, while that is committed: the same as from its rows in the log."""
        named = id_words(stitched.ids)
        return self._staged(
            {
                "keys": lambda: _rows_of_keys(batch, stitched, named, self._with_partners(gone.keys)),
                "journeys": lambda: _rows_of_journeys(
                    pl.concat([stitched.journeys, _without_events(gone.journeys)], how="diagonal")
                ),
                "events": lambda: _rows_of_events(
                    stitched.events, _at(named, stitched.number_of_event), fingerprints(batch), gone.events
                ),
                "pairs": lambda: Rows.of(PAIRS, {"low": stitched.new_pairs}),
                "aliases": lambda: _rows_of_aliases(stitched.aliases.rename({"merged_into": "other_journey_id"})),
            }
        )

    def _with_partners(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Keys that no event has any more, with the partners that they have met: pairs stay known, so do counts."""
        is_found, rows = self._runs["keys"].find(*words(keys["key_hash"]))
        partners = np.zeros(keys.height, np.int64)
        partners[is_found] = rows["partners"]
        return keys.with_columns(partners=pl.Series(partners))

    def are_taken(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Of journey ids whether a journey that lives has them, or one that went into another."""
        high, low = id_words(pl.Series(ids, dtype=pl.String))
        is_known, rows = self._runs["journeys"].find(high, low)
        now_high, now_low = self.current(high, low)
        taken: npt.NDArray[np.bool_] = (now_high != high) | (now_low != low)
        taken[is_known] |= rows["event_count"] > 0
        return taken

    def _staged(self, made: Mapping[str, Callable[[], Rows]]) -> Staged:
        with ThreadPoolExecutor(WRITERS) as pool:
            runs = pool.map(lambda kind: self._runs[kind].stage(made[kind]()), made)
            return dict(zip(made, runs, strict=True))

    def adopt(self, staged: Staged, commits: pl.DataFrame, files: set[str]) -> bool:
        """Take up what was staged; False where another process was faster: then that is taken up, and nothing else.

        Args:
            staged: as `stage` wrote it.
            commits: tenant_id, seq, detail of the commits that it is of.
            files: all files of the log that are in the index now.
        """
        with self._alone():
            if not self.is_newest():
                discard(staged)
                self.load()
                return False
            for kind, run in staged.items():
                self._runs[kind].adopt(run)
            for tenant, seq, detail in commits.iter_rows():
                self._tenants[tenant] = TenantState(seq, json.loads(detail))
            self._files = set(files)
            self._save()
            return True

    def _save(self) -> None:
        named = {kind: runs.names for kind, runs in self._runs.items()}
        said = {
            "format": FORMAT,
            "files": sorted(self._files),
            "tenants": {name: [state.seq, dict(state.detail)] for name, state in self._tenants.items()},
            "runs": named,
        }
        unfinished = self._folder / f"{uuid4().hex}.json"
        unfinished.write_text(json.dumps(said), encoding="utf-8")
        self._stamp = _stamp(unfinished.stat())
        unfinished.rename(self._folder / LIST)
        self._sweep({name for names in named.values() for name in names})

    def _sweep(self, named: set[str]) -> None:
        """Do away with files that the list does not name, once nobody can be about to name them."""
        kept = {Path(name).stem for name in (*named, LIST, LOCK)}
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # discarded by the process that staged it
                if path.stem not in kept and time.time() - path.stat().st_mtime > UNNAMED_SECONDS:
                    path.unlink()

    def _rows_of(self, rows: pl.DataFrame) -> dict[str, Callable[[], Rows]]:
        rows = rows.sort("seq", maintain_order=True)
        events = rows.filter(pl.col("kind") == EVENT)
        facts = Facts.of(events)
        pairs = facts.new_pairs(self._runs["pairs"])
        return {
            "keys": lambda: self._key_rows(rows, events, facts, pairs.met),
            "journeys": lambda: _rows_of_journeys(rows.filter(pl.col("kind") == JOURNEY)),
            "events": lambda: _rows_of_commits(events, rows.filter(pl.col("kind") == REMOVED)),
            "pairs": lambda: pairs.rows,
            "aliases": lambda: _rows_of_aliases(rows.filter(pl.col("kind") == ALIAS)),
        }

    def _key_rows(self, rows: pl.DataFrame, events: pl.DataFrame, facts: "Facts", met: Ints) -> Rows:
        """Keys that the rows speak of, as they are after them; what they do not say of a key stays."""
        held = events.filter(pl.col("key_type").is_not_null() & (pl.col("status") == LINKED)).select(
            "key_hash", "journey_id", "seq", status=pl.lit(None, pl.String), partners=pl.lit(None, pl.Int64)
        )
        said = rows.filter(pl.col("kind") == KEY).select("key_hash", "journey_id", "seq", "status", "partners")
        last = (
            # In one commit a key row stands for events that have it still; of several commits the last counts.
            pl.concat([held, said])
            .sort("seq", maintain_order=True)
            .unique("key_hash", keep="last", maintain_order=True)
            .with_columns(pl.col("key_hash").cast(pl.UInt128), is_said=pl.lit(value=True))
        )
        counted = pl.DataFrame({"key_hash": facts.key_hash, "met": met}, schema_overrides={"met": pl.Int64})
        keys = last.join(counted, on="key_hash", how="full", coalesce=True)
        high, low = words(keys["key_hash"])
        is_found, found = self._runs["keys"].find(high, low)
        old = {name: np.zeros(keys.height, found[name].dtype) for name in KEYS.names or ()}
        for name, column in old.items():
            column[is_found] = found[name]
        is_said = keys["is_said"].is_not_null().to_numpy()
        journey_high, journey_low = id_words(keys["journey_id"])
        partners = old["partners"] + keys["met"].fill_null(0).to_numpy()
        stated = keys["partners"].is_not_null().to_numpy()
        is_quarantined = keys["status"].eq_missing(pl.Series(["quarantined"])).to_numpy()
        return Rows.of(
            KEYS,
            {
                "high": high, "low": low,
                "journey_high": np.where(is_said, journey_high, old["journey_high"]),
                "journey_low": np.where(is_said, journey_low, old["journey_low"]),
                "partners": np.where(stated, keys["partners"].fill_null(0).to_numpy(), partners),
                "is_quarantined": np.where(is_said, is_quarantined, old["is_quarantined"]),
            },
        )  # fmt: skip

    def known_events(self, events: pl.DataFrame) -> pl.DataFrame:
        """Events with what is known of them.

        Args:
            events: tenant_id, event_id.

        Returns:
            fingerprint (null: not known), journey_high and journey_low as last assigned, in the same order.
        """
        is_found, rows = self._runs["events"].find(*event_words(events))
        # A removed event has no journey and is as good as new.
        is_there = (rows["journey_low"] != 0) | (rows["journey_high"] != 0)
        place = np.full(events.height, -1, np.int64)
        place[np.flatnonzero(is_found)[is_there]] = np.arange(is_there.sum())
        known = pl.DataFrame({name: rows[name][is_there] for name in ("journey_high", "journey_low", "fingerprint")})
        places = pl.Series(place).set(pl.Series(place < 0), None)
        return known.select(pl.all().gather(places))

    def current(self, high: Words, low: Words) -> tuple[Words, Words]:
        """The ids of journeys that those given are in now."""
        high, low = high.copy(), low.copy()
        left = np.arange(len(low))
        while len(left):
            is_alias, rows = self._runs["aliases"].find(high[left], low[left])
            to_high, to_low = rows["journey_high"], rows["journey_low"]
            left = left[is_alias]
            # An alias that was taken back leads nowhere.
            leads = (to_high != 0) | (to_low != 0)
            left, to_high, to_low = left[leads], to_high[leads], to_low[leads]
            high[left], low[left] = to_high, to_low
        return high, low

    def journeys(self, high: Words, low: Words) -> pl.DataFrame:
        """The states of journeys, one row per id given.

        Raises:
            LookupError: an id is of no journey.
        """
        is_found, rows = self._runs["journeys"].find(high, low)
        if not is_found.all():
            raise LookupError(f"{(~is_found).sum()} journeys are not in the index at {self._folder}")
        return _states(rows)

    def living(self, ids: pl.Series) -> pl.DataFrame:
        """The states of the journeys that some ids lead to now, of those that have events."""
        high, low = self.current(*id_words(ids))
        return self.journeys(high, low).unique("journey_id").filter(pl.col("event_count") > 0)

    def around(self, journeys: pl.DataFrame) -> pl.DataFrame:
        """Journeys with all that unique keys keep apart from them, directly or over others.

        Args:
            journeys: `JOURNEY_STATE`, of journeys that live.

        Returns:
            The same columns; `apart_from` as the ids are now.
        """
        found, left = journeys, journeys
        while True:
            ids = left["apart_from"].explode().drop_nulls().unique()
            left = self.living(ids).join(found, on="journey_id", how="anti") if len(ids) else left.clear()
            if left.is_empty():
                break
            found = pl.concat([found, left.select(found.columns)])
        said = found["apart_from"].explode().drop_nulls().unique()
        now = dict(zip(said, ids_of_words(*self.current(*id_words(said))), strict=True))
        return found.with_columns(pl.col("apart_from").list.eval(pl.element().replace(now)))

    def known(self, batch: Batch) -> Known:
        """What is known of the keys of a batch."""
        is_found, rows = self._runs["keys"].find(batch.high, batch.low)
        size = batch.keys.height
        raw_high, raw_low = rows["journey_high"], rows["journey_low"]
        is_held = (raw_high != 0) | (raw_low != 0)
        high, low = self.current(raw_high[is_held], raw_low[is_held])
        numbers, first = kernel.dense_ids(high, low)
        journeys = self.journeys(high[first], low[first]).with_row_index("number").sort(
            "created_at", "founding_event_id"
        )  # fmt: skip
        place = np.empty(journeys.height, np.int64)
        place[journeys["number"].to_numpy()] = np.arange(journeys.height)
        key_journey = np.full(size, -1, np.int64)
        key_journey[np.flatnonzero(is_found)[is_held]] = place[numbers]
        is_quarantined, partners = np.zeros(size, np.bool_), np.zeros(size, np.int64)
        is_quarantined[is_found] = rows["is_quarantined"] != 0
        partners[is_found] = rows["partners"]
        _, _, hashes = batch.pairs
        is_known_pair, _ = self._runs["pairs"].find(np.zeros_like(hashes), hashes)
        open_ = journeys.select(
            pl.col(name) if name in journeys.columns else pl.lit(None, dtype).alias(name)
            for name, dtype in KNOWN_JOURNEY.items()
        ).with_columns(is_open=pl.lit(value=True), was_active=pl.lit(value=True))
        return Known(open_, key_journey, is_quarantined, partners, ~is_known_pair)

    def are_held_by(self, keys: pl.DataFrame, journeys: pl.DataFrame) -> pl.Series:
        """Of each key (key_hash) whether one of some journeys (journey_id, as they are now) holds it."""
        is_found, rows = self._runs["keys"].find(*words(keys["key_hash"]))
        high, low = self.current(rows["journey_high"], rows["journey_low"])
        wanted = set(zip(*(word.tolist() for word in id_words(journeys["journey_id"])), strict=True))
        held = np.zeros(keys.height, np.bool_)
        held[is_found] = [pair in wanted for pair in zip(high.tolist(), low.tolist(), strict=True)]
        return pl.Series(held)

    def _current_journeys(self, raw: pl.DataFrame) -> pl.DataFrame:
        held = raw.filter((pl.col("journey_high") > 0) | (pl.col("journey_low") > 0))
        high, low = self.current(
            held["journey_high"].to_numpy().astype(np.uint64), held["journey_low"].to_numpy().astype(np.uint64)
        )
        _, first = kernel.dense_ids(high, low)
        return self.journeys(high[first], low[first])

    def event_journeys(self, events: pl.DataFrame) -> pl.DataFrame:
        """`JOURNEY_STATE` of the journeys that some events are in now."""
        return self._current_journeys(self.known_events(events).drop_nulls())


def discard(staged: Staged) -> None:
    """Do away with what was staged and is not taken up."""
    for run in staged.values():
        if run is not None:
            run.discard()

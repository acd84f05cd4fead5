"""What stitching knows, as an index on this machine, so that a batch costs what it holds and not what there is.

The index is a cache of the log of stitching (`core.journey_log`): it may be lost at any time and is then read anew. It
is of one moment of the log: for each tenant up to one commit. Processes share it: files never change, and the list of
those that count is replaced as a whole.
"""

import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from c360_pipeline.core import journey_kernel as kernel
from c360_pipeline.core.journey_log import ALIAS, COMMIT, EVENT, JOURNEY, KEY, REMOVED, Gone
from c360_pipeline.core.keys import hash128
from c360_pipeline.core.stitching import (
    BLOCKED,
    EXCESS,
    KNOWN_JOURNEY,
    LINKED,
    WEAK,
    Batch,
    Known,
    Stitched,
    words,
)
from c360_pipeline.stores.sorted_runs import Ints, SortedRuns, StagedRun, Words

WORD64 = pa.uint64()
_IDENTITY: list[tuple[str, pa.DataType]] = [("high", WORD64), ("low", WORD64)]
_JOURNEY: list[tuple[str, pa.DataType]] = [("journey_high", WORD64), ("journey_low", WORD64)]
KEY_ROWS = pa.schema(
    [*_IDENTITY, *_JOURNEY, ("partners", pa.int64()), ("is_weak", pa.bool_()), ("is_quarantined", pa.bool_())]
)
EVENT_ROWS = pa.schema([*_IDENTITY, *_JOURNEY, ("fingerprint", WORD64)])
JOURNEY_ROWS = pa.schema(
    [
        *_IDENTITY, ("tenant_id", pa.string()), ("journey_id", pa.string()), ("created_at", pa.int64()),
        ("founding_event_id", pa.string()), ("first_event_ts", pa.int64()), ("last_event_ts", pa.int64()),
        ("event_count", pa.int64()), ("key_count", pa.int64()), ("unique_keys", pa.list_(pa.string())),
    ]
)  # fmt: skip
ALIAS_ROWS = pa.schema([*_IDENTITY, *_JOURNEY])
PAIR_ROWS = pa.schema(_IDENTITY)
KINDS = {"keys": KEY_ROWS, "events": EVENT_ROWS, "journeys": JOURNEY_ROWS, "aliases": ALIAS_ROWS, "pairs": PAIR_ROWS}
_INSTANT = pl.Datetime("us", "UTC")
LIST = "index.json"
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


class JourneyIndex:
    """The index of one log.

    Args:
        folder: of this log; created when it is first written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = {kind: SortedRuns(folder, schema) for kind, schema in KINDS.items()}
        self._tenants: dict[str, TenantState] = {}
        self._files: set[str] = set()
        self._generation: str | None = None

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
                said = json.loads((self._folder / LIST).read_text(encoding="utf-8"))
                for kind, runs in self._runs.items():
                    runs.load(said["runs"][kind])
            except FileNotFoundError:
                continue  # another process merged a run meanwhile, and wrote a new list before it did away with it
            except (ValueError, KeyError, pa.ArrowInvalid):
                break
            self._generation = said["generation"]
            self._files = set(said["files"])
            self._tenants = {name: TenantState(seq, detail) for name, (seq, detail) in said["tenants"].items()}
            return
        self.forget()

    def is_newest(self) -> bool:
        """Whether no other process has written the list since it was loaded."""
        return self._written_generation() == self._generation

    def _written_generation(self) -> str | None:
        """What the list on disk calls itself; None for none that can be read."""
        try:
            generation: str | None = json.loads((self._folder / LIST).read_text(encoding="utf-8")).get("generation")
        except (FileNotFoundError, ValueError):
            return None
        return generation

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process at a time writes the list."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def forget(self) -> None:
        """Begin anew: the log is another than the index was made from."""
        self._runs = {kind: SortedRuns(self._folder, schema) for kind, schema in KINDS.items()}
        self._tenants, self._files = {}, set()
        self._generation = self._written_generation()

    def absorb(self, rows: pl.DataFrame, files: set[str]) -> bool:
        """Take up rows of the log; False where another process was faster, as in `adopt`.

        Args:
            rows: whole commits, none of which is in the index.
            files: all files of the log that are in the index now.
        """
        commits = rows.filter(pl.col("kind") == COMMIT).sort("seq").select("tenant_id", "seq", "detail")
        return self.adopt(self._staged(self._tables(rows)) if rows.height else {}, commits, files)

    def stage(self, batch: Batch, stitched: Stitched, gone: Gone) -> Staged:
        """Write what the index is after a decision, while that is committed: the same as from its rows in the log."""
        return self._staged(
            {
                "pairs": _pair_table(stitched.new_pairs),
                "keys": _key_table(batch, stitched, self._with_partners(gone.keys)),
                "events": _event_table(
                    stitched.events, stitched.ids, stitched.number_of_event, fingerprints(batch), gone.events
                ),
                "journeys": _journey_rows(
                    pl.concat([stitched.journeys, _without_events(gone.journeys)], how="diagonal")
                ),
                "aliases": _alias_rows(stitched.aliases.rename({"merged_into": "other_journey_id"})),
            }
        )

    def _with_partners(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Keys that no event has any more, with the partners that they have met: pairs stay known, so do counts."""
        is_found, rows = self._runs["keys"].find(*words(keys["key_hash"]))
        partners = np.zeros(keys.height, np.int64)
        partners[is_found] = np.asarray(rows["partners"].combine_chunks())
        return keys.with_columns(partners=pl.Series(partners))

    def are_taken(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Of journey ids whether a journey that lives has them, or one that went into another."""
        high, low = journey_words(pl.Series(ids, dtype=pl.String))
        is_known, rows = self._runs["journeys"].find(high, low)
        now_high, now_low = self.current(high, low)
        taken: npt.NDArray[np.bool_] = (now_high != high) | (now_low != low)
        taken[is_known] |= np.asarray(rows["event_count"].combine_chunks()) > 0
        return taken

    def _staged(self, tables: Mapping[str, pa.Table]) -> Staged:
        with ThreadPoolExecutor(WRITERS) as pool:
            runs = pool.map(lambda kind: self._runs[kind].stage(tables[kind]), tables)
            return dict(zip(tables, runs, strict=True))

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
        self._generation = uuid4().hex
        named = {kind: runs.names for kind, runs in self._runs.items()}
        said = {
            "generation": self._generation,
            "files": sorted(self._files),
            "tenants": {name: [state.seq, dict(state.detail)] for name, state in self._tenants.items()},
            "runs": named,
        }
        unfinished = self._folder / f"{self._generation}.json"
        unfinished.write_text(json.dumps(said), encoding="utf-8")
        unfinished.rename(self._folder / LIST)
        self._sweep({name for names in named.values() for name in names})

    def _sweep(self, named: set[str]) -> None:
        """Do away with files that the list does not name, once nobody can be about to name them."""
        for path in self._folder.glob("*.arrow"):
            with suppress(FileNotFoundError):  # discarded by the process that staged it
                if path.name not in named and time.time() - path.stat().st_mtime > UNNAMED_SECONDS:
                    path.unlink()

    def _tables(self, rows: pl.DataFrame) -> dict[str, pa.Table]:
        rows = rows.sort("seq", maintain_order=True)
        events = rows.filter(pl.col("kind") == EVENT)
        facts = Facts.of(events)
        pairs = facts.new_pairs(self._runs["pairs"])
        return {
            "pairs": pairs.rows,
            "keys": self._key_rows(rows, events, facts, pairs.met),
            "events": _event_rows(events, rows.filter(pl.col("kind") == REMOVED)),
            "journeys": _journey_rows(rows.filter(pl.col("kind") == JOURNEY)),
            "aliases": _alias_rows(rows.filter(pl.col("kind") == ALIAS)),
        }

    def _key_rows(self, rows: pl.DataFrame, events: pl.DataFrame, facts: "Facts", met: Ints) -> pa.Table:
        """Keys that the rows speak of, as they are after them; what they do not say of a key stays."""
        held = events.filter(pl.col("key_type").is_not_null() & (pl.col("status") == LINKED)).select(
            "key_hash", "journey_id", status=pl.lit(None, pl.String), partners=pl.lit(None, pl.Int64)
        )
        said = rows.filter(pl.col("kind") == KEY).select("key_hash", "journey_id", "status", "partners")
        last = (
            pl.concat([held, said])
            .unique("key_hash", keep="last", maintain_order=True)
            .with_columns(pl.col("key_hash").cast(pl.UInt128), is_said=pl.lit(value=True))
        )
        counted = pl.DataFrame({"key_hash": facts.key_hash, "met": met}, schema_overrides={"met": pl.Int64})
        keys = last.join(counted, on="key_hash", how="full", coalesce=True)
        high, low = words(keys["key_hash"])
        is_found, found = self._runs["keys"].find(high, low)
        old = keys.select("key_hash").filter(pl.Series(is_found)).hstack(
            pl.DataFrame(found).drop("high", "low").rename(lambda name: f"old_{name}")
        )  # fmt: skip
        journey_high, journey_low = journey_words(keys["journey_id"])
        now = (
            keys.with_columns(journey_high=pl.Series(journey_high), journey_low=pl.Series(journey_low))
            .with_columns(high=pl.Series(high), low=pl.Series(low))
            .join(old, on="key_hash", how="left", maintain_order="left")
        )
        is_said = pl.col("is_said").is_not_null()
        partners = pl.col("old_partners").fill_null(0) + pl.col("met").fill_null(0)
        weak, quarantined = (pl.col("status").eq_missing(pl.lit(status)) for status in ("weak", "quarantined"))
        stated = now.select(
            "high", "low",
            *(pl.when(is_said).then(name).otherwise(pl.col(f"old_{name}").fill_null(0)).alias(name)
              for name in ("journey_high", "journey_low")),
            partners=pl.coalesce("partners", partners),
            is_weak=pl.when(is_said).then(weak).otherwise(pl.col("old_is_weak").fill_null(value=False)),
            is_quarantined=pl.when(is_said).then(quarantined).otherwise(
                pl.col("old_is_quarantined").fill_null(value=False)),
        )  # fmt: skip
        return stated.to_arrow().cast(KEY_ROWS)

    def known_events(self, events: pl.DataFrame) -> pl.DataFrame:
        """Events with what is known of them.

        Args:
            events: tenant_id, event_id.

        Returns:
            fingerprint (null: not known), journey_high and journey_low as last assigned, in the same order.
        """
        high, low = event_words(events)
        is_found, rows = self._runs["events"].find(high, low)
        found = pl.DataFrame(rows).select("journey_high", "journey_low", "fingerprint")
        place = pl.Series(np.where(is_found, np.cumsum(is_found) - 1, -1))
        asked = pl.DataFrame({"place": place}).with_columns(pl.col("place").cast(pl.Int64))
        known = asked.join(found.with_row_index("place").cast({"place": pl.Int64}), on="place", how="left",
                           maintain_order="left").drop("place")  # fmt: skip
        # A removed event has no journey and is as good as new.
        is_there = pl.col("journey_low") + pl.col("journey_high") > 0
        return known.select(pl.when(is_there).then(pl.all()))

    def current(self, high: Words, low: Words) -> tuple[Words, Words]:
        """The ids of journeys that those given are in now."""
        high, low = high.copy(), low.copy()
        left = np.arange(len(low))
        while len(left):
            is_alias, rows = self._runs["aliases"].find(high[left], low[left])
            to_high, to_low = (np.asarray(rows[name].combine_chunks()) for name in ("journey_high", "journey_low"))
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
        return pl.DataFrame(rows).with_columns(pl.col("created_at", "first_event_ts", "last_event_ts").cast(_INSTANT))

    def living(self, ids: pl.Series) -> pl.DataFrame:
        """The states of the journeys that some ids lead to now, of those that have events."""
        high, low = self.current(*journey_words(ids))
        return self.journeys(high, low).unique("journey_id").filter(pl.col("event_count") > 0)

    def known(self, batch: Batch) -> Known:
        """What is known of the keys of a batch."""
        is_found, rows = self._runs["keys"].find(batch.high, batch.low)
        found = pl.DataFrame(rows)
        size = batch.keys.height
        raw_high, raw_low = found["journey_high"].to_numpy(), found["journey_low"].to_numpy()
        is_held = (raw_high != 0) | (raw_low != 0)
        high, low = self.current(raw_high[is_held].astype(np.uint64), raw_low[is_held].astype(np.uint64))
        numbers, first = kernel.dense_ids(high, low)
        journeys = self.journeys(high[first], low[first]).with_row_index("number").sort(
            "created_at", "founding_event_id"
        )  # fmt: skip
        place = np.empty(journeys.height, np.int64)
        place[journeys["number"].to_numpy()] = np.arange(journeys.height)
        key_journey = np.full(size, -1, np.int64)
        key_journey[np.flatnonzero(is_found)[is_held]] = place[numbers]
        is_quarantined, partners = np.zeros(size, np.bool_), np.zeros(size, np.int64)
        is_quarantined[is_found] = found["is_quarantined"].to_numpy()
        partners[is_found] = found["partners"].to_numpy()
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
        raw = pl.DataFrame(rows)
        high, low = self.current(raw["journey_high"].to_numpy(), raw["journey_low"].to_numpy())
        wanted = set(zip(*(word.tolist() for word in journey_words(journeys["journey_id"])), strict=True))
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


@dataclass(frozen=True)
class _NewPairs:
    rows: pa.Table
    met: Ints


@dataclass(frozen=True)
class Facts:
    """The keys of events as the log has them, numbered.

    Attributes:
        key_hash: of each different key, as 128 bits.
        high: its upper word.
        low: its lower word.
        starts: place of each event's first key.
        key: number of the key at each place.
    """

    key_hash: pl.Series
    high: Words
    low: Words
    starts: Ints
    key: Ints

    @classmethod
    def of(cls, events: pl.DataFrame) -> "Facts":
        """From event rows; only keys that may tie count as partners."""
        rows = (
            events.filter(pl.col("key_type").is_not_null() & ~pl.col("status").is_in([BLOCKED, EXCESS, WEAK]))
            .select("tenant_id", "event_id", pl.col("key_hash").cast(pl.UInt128))
            .unique(maintain_order=True)
        )
        high, low = words(rows["key_hash"])
        numbers, first = kernel.dense_ids(high, low)
        event_high, event_low = event_words(rows)
        event, _ = kernel.dense_ids(event_high, event_low)
        count = int(event.max()) + 1 if len(event) else 0
        starts, order = kernel.order_by_event(event.astype(np.int64), np.zeros(len(event), np.int16), high, low, count)
        return cls(rows["key_hash"].gather(first), high[first], low[first], starts, numbers[order].astype(np.int64))

    def new_pairs(self, known: SortedRuns) -> _NewPairs:
        """Pairs that no row before had, and how many each key is in."""
        left, right = kernel.different_pairs(*kernel.partner_pairs(self.starts, self.key))
        hashes = kernel.pair_hashes(left, right, self.high, self.low)
        is_known, _ = known.find(np.zeros_like(hashes), hashes)
        met = np.bincount(left[~is_known], minlength=len(self.low))
        met += np.bincount(right[~is_known], minlength=len(self.low))
        new = hashes[~is_known]
        return _NewPairs(_pair_table(new), met)


def discard(staged: Staged) -> None:
    """Do away with what was staged and is not taken up."""
    for run in staged.values():
        if run is not None:
            run.discard()


def event_words(events: pl.DataFrame) -> tuple[Words, Words]:
    """128 bits for each event, by tenant and id."""
    tenant = pl.col("tenant_id")
    text = pl.concat_str(tenant.str.len_bytes(), pl.lit(":"), tenant, pl.col("event_id"))
    return words(events.select(hash128(text)).to_series())


def fingerprints(batch: Batch) -> Words:
    """64 bits of the time and the keys of each event of a batch, by which an altered event shows."""
    held = pl.DataFrame({"row": np.repeat(np.arange(batch.events.height), np.diff(batch.starts))})
    keys = held.with_columns(batch.keys["key_hash"].gather(batch.key))
    excess = batch.excess.select(row="event", key_hash="key_hash")
    return event_fingerprints(batch.events["ts"], pl.concat([keys, excess]))


def _pair_table(hashes: Words) -> pa.Table:
    return pa.table([pa.array(column, WORD64) for column in (np.zeros_like(hashes), hashes)], schema=PAIR_ROWS)


def _key_table(batch: Batch, stitched: Stitched, gone: pl.DataFrame) -> pa.Table:
    gone_high, gone_low = words(gone["key_hash"])
    keys, nothing = stitched.key_journey, np.zeros(gone.height, np.uint64)
    journey_high, journey_low = _words_of(stitched.ids, stitched.number_of_key)
    columns = {
        "high": np.concatenate([batch.high, gone_high]),
        "low": np.concatenate([batch.low, gone_low]),
        "journey_high": np.concatenate([journey_high, nothing]),
        "journey_low": np.concatenate([journey_low, nothing]),
        "partners": np.concatenate([keys["partners"].to_numpy(), gone["partners"].to_numpy()]),
        "is_weak": np.concatenate([keys["is_weak"].to_numpy(), np.zeros(gone.height, np.bool_)]),
        "is_quarantined": np.concatenate([keys["is_quarantined"].to_numpy(), np.zeros(gone.height, np.bool_)]),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in KEY_ROWS], schema=KEY_ROWS)


def _words_of(ids: pl.Series, numbers: Ints) -> tuple[Words, Words]:
    """The two halves of journey ids by number, 0 for none: of each journey its id is read once."""
    high, low = (np.append(word, np.uint64(0)) for word in journey_words(ids))
    return high[numbers], low[numbers]


def _event_table(events: pl.DataFrame, ids: pl.Series, numbers: Ints, prints: Words, gone: pl.DataFrame) -> pa.Table:
    """Events that are gone stand first: one that came back with other keys stands again behind them."""
    high, low = event_words(pl.concat([gone.select("tenant_id", "event_id"), events.select("tenant_id", "event_id")]))
    nothing = np.zeros(gone.height, np.uint64)
    columns = [high, low, *(np.concatenate([nothing, part]) for part in (*_words_of(ids, numbers), prints))]
    return pa.table([pa.array(column, WORD64) for column in columns], schema=EVENT_ROWS)


def _without_events(journeys: pl.DataFrame) -> pl.DataFrame:
    return journeys.with_columns(event_count=pl.lit(0, pl.Int64), key_count=pl.lit(0, pl.Int64))


def _event_rows(events: pl.DataFrame, removed: pl.DataFrame) -> pa.Table:
    """Events as the log has them, in the order of commits."""
    parts = []
    came, went = (frame.partition_by("seq", as_dict=True, maintain_order=True) for frame in (events, removed))
    for seq in sorted({*came, *went}):
        now = came.get(seq, events.clear())
        rows = now.unique(["tenant_id", "event_id"], keep="first", maintain_order=True).with_row_index("row")
        numbered = now.join(rows.select("tenant_id", "event_id", "row"), on=["tenant_id", "event_id"])
        keys = numbered.drop_nulls("key_type").with_columns(pl.col("key_hash").cast(pl.UInt128))
        prints = event_fingerprints(rows["ts"], keys)
        gone = went.get(seq, removed.clear())
        parts.append(_event_table(rows, rows["journey_id"], np.arange(rows.height), prints, gone))
    return pa.concat_tables(parts) if parts else EVENT_ROWS.empty_table()


def event_fingerprints(ts: pl.Series, keys: pl.DataFrame) -> Words:
    """The same from the times of events and their keys: row (place of the event), key_hash."""
    high, low = words(keys["key_hash"])
    row = keys["row"].to_numpy().astype(np.int64)
    starts, order = kernel.order_by_event(row, np.zeros(len(row), np.int16), high, low, len(ts))
    return np.asarray(kernel.event_fingerprints(starts, order, high, low, ts.dt.epoch("us").to_numpy()))


def _journey_rows(rows: pl.DataFrame) -> pa.Table:
    high, low = journey_words(rows["journey_id"])
    numbers = rows.select(
        pl.col("created_at", "first_event_ts", "last_event_ts").dt.epoch("us"), "event_count", "key_count"
    )
    columns: dict[str, Any] = {
        "high": high, "low": low,
        **{name: rows[name].to_arrow().cast(pa.string()) for name in ("tenant_id", "journey_id", "founding_event_id")},
        **{name: numbers[name].to_arrow() for name in numbers.columns},
        "unique_keys": rows["unique_keys"].to_arrow().cast(pa.list_(pa.string())),
    }  # fmt: skip
    return pa.table([columns[name] for name in JOURNEY_ROWS.names], schema=JOURNEY_ROWS)


def _alias_rows(rows: pl.DataFrame) -> pa.Table:
    high, low = journey_words(rows["journey_id"])
    to_high, to_low = journey_words(rows["other_journey_id"])
    return pa.table([pa.array(column, WORD64) for column in (high, low, to_high, to_low)], schema=ALIAS_ROWS)


def journey_words(ids: pl.Series) -> tuple[Words, Words]:
    """The two halves of journey ids, 0 for null."""
    digits = ids.to_frame("id").select(pl.col("id").str.replace_all("-", "", literal=True))
    halves = digits.select(
        pl.col("id").str.slice(start, 16).str.to_integer(base=16, dtype=pl.UInt64).fill_null(0).alias(name)
        for name, start in (("high", 0), ("low", 16))
    )
    return halves["high"].to_numpy().astype(np.uint64), halves["low"].to_numpy().astype(np.uint64)

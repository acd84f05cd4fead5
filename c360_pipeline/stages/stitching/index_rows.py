"""Rows of the index of journeys, made from the log or from a batch that was stitched."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from c360_pipeline.core.arrays.row_hashes import hash128, words
from c360_pipeline.core.kernels import journeys as kernel
from c360_pipeline.core.stitching.batch import JOURNEY_STATE, Batch, Stitched
from c360_pipeline.core.stitching.journey_ids import id_words, ids_of_words
from c360_pipeline.core.stitching.statuses import BLOCKED, EXCESS, WEAK
from c360_pipeline.stores.local.sorted_index import Ints, Rows, SortedRuns, Words, record

_IDENTITY, _JOURNEY = ("low", "high"), ("journey_low", "journey_high")

KEYS = record([*_IDENTITY, *_JOURNEY], ["partners", "is_quarantined"])
EVENTS = record([*_IDENTITY, *_JOURNEY, "fingerprint"])
JOURNEYS = record(
    _IDENTITY, ["created_at", "first_event_ts", "last_event_ts", "event_count", "key_count", "tenant_characters",
                "founder_characters"], texts=True,
)  # fmt: skip
"""The text is the tenant, the founding event, and, with a blank between them, unique keys, then journeys apart."""
ALIASES = record([*_IDENTITY, *_JOURNEY])
PAIRS = record(["low"])
_THEN = "\x1f"
_INSTANT = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class _NewPairs:
    rows: Rows
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
        """From event rows; only keys that may link count as partners."""
        rows = (
            events.filter(pl.col("key_type").is_not_null() & ~pl.col("status").is_in([BLOCKED, EXCESS, WEAK]))
            # An event that a later commit gave other keys met those of each commit, not of both.
            .select(
                "tenant_id",
                pl.col("key_hash").cast(pl.UInt128),
                event_id=pl.concat_str("event_id", pl.lit("\x1f"), "seq"),
            )
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
        return _NewPairs(Rows.of(PAIRS, {"low": new}), met)


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


def _rows_of_keys(batch: Batch, stitched: Stitched, named: tuple[Words, Words], gone: pl.DataFrame) -> Rows:
    gone_high, gone_low = words(gone["key_hash"])
    keys, nothing = stitched.key_journey, np.zeros(gone.height, np.uint64)
    journey_high, journey_low = _at(named, stitched.number_of_key)
    return Rows.of(
        KEYS,
        {
            "high": np.concatenate([batch.high, gone_high]),
            "low": np.concatenate([batch.low, gone_low]),
            "journey_high": np.concatenate([journey_high, nothing]),
            "journey_low": np.concatenate([journey_low, nothing]),
            "partners": np.concatenate([keys["partners"].to_numpy(), gone["partners"].to_numpy()]),
            "is_quarantined": np.concatenate([keys["is_quarantined"].to_numpy(), np.zeros(gone.height, np.bool_)]),
        },
    )


def _at(named: tuple[Words, Words], numbers: Ints) -> tuple[Words, Words]:
    """The two words of journeys by number, 0 for none."""
    high, low = (np.append(word, np.uint64(0)) for word in named)
    return high[numbers], low[numbers]


def _rows_of_events(events: pl.DataFrame, journey: tuple[Words, Words], prints: Words, gone: pl.DataFrame) -> Rows:
    """Events that are gone stand first: one that came back with other keys stands again behind them."""
    high, low = event_words(pl.concat([gone.select("tenant_id", "event_id"), events.select("tenant_id", "event_id")]))
    columns = {"journey_high": journey[0], "journey_low": journey[1], "fingerprint": prints}
    nothing = np.zeros(gone.height, np.uint64)
    return Rows.of(
        EVENTS,
        {"high": high, "low": low, **{name: np.concatenate([nothing, part]) for name, part in columns.items()}},
    )


def _without_events(journeys: pl.DataFrame) -> pl.DataFrame:
    return journeys.with_columns(event_count=pl.lit(0, pl.Int64), key_count=pl.lit(0, pl.Int64))


def _rows_of_commits(events: pl.DataFrame, removed: pl.DataFrame) -> Rows:
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
        parts.append(_rows_of_events(rows, id_words(rows["journey_id"]), prints, gone).records)
    return Rows(np.concatenate(parts) if parts else np.empty(0, EVENTS))


def event_fingerprints(ts: pl.Series, keys: pl.DataFrame) -> Words:
    """The same from the times of events and their keys: row (place of the event), key_hash."""
    high, low = words(keys["key_hash"])
    row = keys["row"].to_numpy().astype(np.int64)
    starts, order = kernel.order_by_event(row, np.zeros(len(row), np.int16), high, low, len(ts))
    return np.asarray(kernel.event_fingerprints(starts, order, high, low, ts.dt.epoch("us").to_numpy()))


def _rows_of_journeys(states: pl.DataFrame) -> Rows:
    """From `JOURNEY_STATE`."""
    high, low = id_words(states["journey_id"])
    unique, apart = (pl.col(name).list.join(" ").fill_null("") for name in ("unique_keys", "apart_from"))
    said = pl.when(apart == "").then(unique).otherwise(pl.concat_str(unique, pl.lit(_THEN), apart))
    founder = pl.col("founding_event_id").fill_null("")
    numbers = states.select(
        pl.col("created_at", "first_event_ts", "last_event_ts").dt.epoch("us").fill_null(0), "event_count",
        "key_count", tenant_characters=pl.col("tenant_id").str.len_chars(), founder_characters=founder.str.len_chars(),
    )  # fmt: skip
    columns = {name: numbers[name].to_numpy() for name in numbers.columns}
    texts = states.select(pl.concat_str("tenant_id", founder, said)).to_series()
    return Rows.of(JOURNEYS, {"high": high, "low": low, **columns}, texts)


def _states(rows: Rows) -> pl.DataFrame:
    """`JOURNEY_STATE` of rows."""
    numbers = ["event_count", "key_count", "tenant_characters", "founder_characters"]
    instants = ["created_at", "first_event_ts", "last_event_ts"]
    told = pl.DataFrame(
        [rows.text(), ids_of_words(rows["high"], rows["low"]), *(pl.Series(n, rows[n]) for n in [*instants, *numbers])]
    )
    text, tenant, founder = pl.col("text"), pl.col("tenant_characters"), pl.col("founder_characters")
    said = text.str.slice(tenant + founder).str.split_exact(_THEN, 1)
    listed = {
        name: pl.when(part.fill_null("") == "").then(pl.lit([], pl.List(pl.String))).otherwise(part.str.split(" "))
        for name, part in (
            ("unique_keys", said.struct.field("field_0")), ("apart_from", said.struct.field("field_1"))
        )
    }  # fmt: skip
    return told.select(
        "journey_id", pl.col(instants).cast(_INSTANT), *numbers[:2],
        tenant_id=text.str.slice(0, tenant), founding_event_id=text.str.slice(tenant, founder),
        **listed,
    ).select(list(JOURNEY_STATE))  # fmt: skip


def _rows_of_aliases(rows: pl.DataFrame) -> Rows:
    high, low = id_words(rows["journey_id"])
    to_high, to_low = id_words(rows["other_journey_id"])
    return Rows.of(ALIASES, {"high": high, "low": low, "journey_high": to_high, "journey_low": to_low})

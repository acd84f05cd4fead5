import uuid
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from c360_pipeline.core.kernels import journeys as kernel
from c360_pipeline.core.stitching.batch import Known, prepare
from c360_pipeline.core.stitching.components import Engine, connected_components
from c360_pipeline.core.stitching.journey_ids import JOURNEY_NAMESPACE, id_words, ids_of_words, journey_id, journey_ids
from c360_pipeline.core.stitching.keys import KEY_COLUMNS, KeyPolicy, KeyRule
from c360_pipeline.core.stitching.log import in_one_step
from c360_pipeline.core.stitching.stitch import stitch

START = datetime(2025, 10, 1, tzinfo=UTC)
POLICY = KeyPolicy((KeyRule("*", "user", "userId"), KeyRule("*", "device", "attrs.deviceId")))


def test_a_journeys_id_is_the_uuid5_of_its_tenant_and_founder() -> None:
    founders = [("acme", f"e{n}") for n in range(300)] + [("ümlaut", "x" * 64)]
    found = journey_ids([t for t, _ in founders], [e for _, e in founders])
    assert found == [str(uuid.uuid5(JOURNEY_NAMESPACE, f"{len(t)}:{t}{e}")) for t, e in founders]
    assert journey_id("acme", "e7") == found[7]


def test_the_id_of_a_journey_is_two_words_and_back() -> None:
    ids = pl.Series([str(uuid.UUID(int=n)) for n in (0, 1, (1 << 128) - 1, 0x0123456789ABCDEF << 61)])
    high, low = id_words(ids)
    assert [(int(a) << 64) + int(b) for a, b in zip(high, low, strict=True)] == [uuid.UUID(i).int for i in ids]
    assert ids_of_words(high, low).to_list() == ids.to_list()
    assert [word.tolist() for word in id_words(pl.Series([None, ids[1]]))] == [[0, 0], [0, 1]]
    assert [word.tolist() for word in id_words(pl.Series([], dtype=pl.String))] == [[], []]
    assert ids_of_words(*id_words(ids.slice(1, 2))).to_list() == ids.to_list()[1:3]


@pytest.mark.parametrize(
    "text", ["", "journey", str(uuid.UUID(int=171)).upper(), "x" * 36, str(uuid.UUID(int=1)) + "0"]
)
def test_what_is_no_id_of_a_journey_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not the id of a journey"):
        id_words(pl.Series([str(uuid.UUID(int=7)), text]))


@pytest.mark.parametrize("engine", ["numba", "scipy"])
def test_components_are_named_by_their_smallest_node(engine: Engine) -> None:
    left, right = np.array([1, 4, 5, 5]), np.array([2, 3, 4, 5])
    assert connected_components(left, right, 7, engine).tolist() == [0, 1, 1, 3, 3, 3, 6]


@pytest.mark.parametrize("seed", range(20))
def test_both_engines_and_the_fold_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    events, keys = 400, int(rng.integers(50, 800))
    pairs = [(e, int(k)) for e in range(events) for k in set(rng.integers(0, keys, rng.integers(0, 4)))]
    left, right = np.array([e for e, _ in pairs]), np.array([events + k for _, k in pairs])
    by_numba, by_scipy = (connected_components(left, right, events + keys, e) for e in ("numba", "scipy"))
    assert (by_numba == by_scipy).all()
    rows = pl.DataFrame({"tenant_id": ["t"] * events, "event_id": [f"{e:04}" for e in range(events)],
                         "ts": [START + timedelta(minutes=e) for e in range(events)]})  # fmt: skip
    found = pl.DataFrame([(e, "user", k) for e, k in pairs], schema=KEY_COLUMNS, orient="row")
    batch = prepare(rows, found, POLICY)
    decided = stitch(batch, Known.nothing(batch), POLICY).events.sort("event_id")
    first_of = {}
    for event, name in enumerate(decided["journey_id"]):
        first_of.setdefault(name, event)
    assert [first_of[name] for name in decided["journey_id"]] == by_numba[:events].tolist()


def test_keys_of_an_event_stand_from_the_strongest_to_the_weakest() -> None:
    event, strength = np.array([1, 0, 1, 1]), np.array([2, 0, 0, 2], np.int16)
    high, low = np.zeros(4, np.uint64), np.array([9, 1, 5, 3], np.uint64)
    starts, order = kernel.order_by_event(event, strength, high, low, 3)
    assert starts.tolist() == [0, 1, 4, 4]
    assert order.tolist() == [1, 2, 3, 0]


def test_the_compiled_fold_and_the_plain_one_agree() -> None:
    rng = np.random.default_rng(5)
    events = 200
    starts = np.arange(0, 2 * events + 1, 2)
    key = rng.integers(0, 120, 2 * events)
    key[1::2] = np.where(key[1::2] == key[::2], key[1::2] + 120, key[1::2])
    slot = np.where(np.arange(240) < 40, 0, -1)
    same = np.where(np.arange(240) < 10, np.arange(240) // 2 * 2, np.arange(240))

    def arguments() -> tuple[object, ...]:
        return (
            starts, key, key % 7 == 0, np.full(240, -1), slot, same, np.empty(0, np.int64),
            np.zeros(events, np.int64), np.full((events, 1), -1), np.full(events, -1), np.full(events, 30), 0,
        )  # fmt: skip

    for compiled, plain in zip(kernel.fold_events(*arguments()), kernel.fold_events.py_func(*arguments()), strict=True):
        assert (compiled == plain).all()


def test_aliases_of_aliases_lead_to_the_last() -> None:
    rows = [("t", "c", "b"), ("t", "b", "a"), ("t", "d", "c"), ("u", "c", None)]
    found = in_one_step(pl.DataFrame(rows, schema=["tenant_id", "journey_id", "merged_into"], orient="row"))
    assert found["merged_into"].to_list() == ["a", "a", "a", None]


def test_the_stronger_rule_is_the_unique_one_then_the_first() -> None:
    policy = KeyPolicy(
        (KeyRule("*", "device", "attrs.d"), KeyRule("*", "user", "userId", is_unique=True),
         KeyRule("acme", "device", "attrs.d", "weak"), KeyRule("*", "ip", "attrs.ip", "ignore"))
    )  # fmt: skip
    rows = policy.by_type(["acme", "globex"]).select("tenant_id", "key_type", "is_weak", "unique_slot", "strength")
    assert sorted(rows.iter_rows()) == [
        ("acme", "device", True, -1, 1), ("acme", "user", False, 0, 0),
        ("globex", "device", False, -1, 1), ("globex", "user", False, 0, 0),
    ]  # fmt: skip


def test_rules_of_one_tenant_do_not_change_the_fingerprint_of_another() -> None:
    other = KeyPolicy((*POLICY.rules, KeyRule("acme", "device", "attrs.deviceId", "weak")))
    assert POLICY.fingerprint("globex") == other.fingerprint("globex")
    assert POLICY.fingerprint("acme") != other.fingerprint("acme")

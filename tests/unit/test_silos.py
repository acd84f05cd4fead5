import dataclasses
from decimal import Decimal

import polars as pl
import pytest

from c360_pipeline.core.silos import (
    Column,
    ControlRows,
    RelationshipRow,
    SourceDatabase,
    SourceTable,
    changed_rows,
    join_labels,
    lake_type,
    node_kind,
    node_rows,
    parse_join,
    plan_extracts,
)
from c360_pipeline.errors import ConfigError

DATABASE = SourceDatabase(1, "acme", "profiles_db", "h", 1, "u", "env:P")
TABLE = SourceTable(7, 1, "public", "accounts", ("account_id",))
COLUMNS = {7: {n: Column(n, t) for n, t in (("account_id", "int8"), ("email", "text"), ("hashed_password", "text"))}}
CONTROL = ControlRows((DATABASE,), (TABLE,), frozenset({(7, "hashed_password")}), {7: "Account"}, ())


def test_two_tenants_can_not_share_a_place_in_the_lake() -> None:
    control = dataclasses.replace(
        CONTROL,
        databases=(DATABASE, dataclasses.replace(DATABASE, database_id=2, tenant_id="globex")),
        tables=(TABLE, dataclasses.replace(TABLE, table_id=8, database_id=2)),
    )
    with pytest.raises(ConfigError, match="rows 7 and 8 have one place in the lake"):
        plan_extracts(control, {7: COLUMNS[7], 8: COLUMNS[7]})


def test_one_label_has_one_key() -> None:
    second = dataclasses.replace(TABLE, table_id=8, table_name="people", key_columns=("email",))
    control = dataclasses.replace(CONTROL, tables=(TABLE, second), labels={7: "Account", 8: "Account"})
    with pytest.raises(ConfigError, match="has two keys"):
        plan_extracts(control, {7: COLUMNS[7], 8: COLUMNS[7]})


def row(condition: str, via: str | None = None, kind: str = "KNOWS") -> RelationshipRow:
    return RelationshipRow(3, "A", "B", kind, condition, via)


def test_excluded_columns_are_not_read() -> None:
    (extract,) = plan_extracts(CONTROL, COLUMNS)
    assert [c.name for c in extract.columns] == ["account_id", "email"]
    assert extract.lake_table == "silos/profiles_db/accounts"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"excluded": frozenset({(7, "account_id")})}, "key column 'account_id' is excluded"),
        ({"excluded": frozenset({(7, "nope")})}, "excluded column 'nope' does not exist"),
        ({"labels": {7: "Account) DETACH DELETE (n"}}, "label"),
        ({"labels": {7: "User"}}, "is one of the graph's own"),
        ({"databases": (dataclasses.replace(DATABASE, db_name="../../events"),)}, "folder"),
        ({"databases": (dataclasses.replace(DATABASE, db_name=".."),)}, "folder"),
        ({"tables": (dataclasses.replace(TABLE, key_columns=("id",)),)}, "key column 'id' does not exist"),
        ({"tables": (dataclasses.replace(TABLE, table_id=8),)}, "no such table"),
    ],
)
def test_control_rows_that_can_not_be_are_all_named(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=r"source_tables row \d") as caught:
        plan_extracts(dataclasses.replace(CONTROL, **change), COLUMNS)
    assert says in str(caught.value)


def test_numbers_keep_their_digits() -> None:
    assert lake_type(Column("n", "numeric", 30, 4)) == pl.Decimal(30, 4)
    assert lake_type(Column("n", "numeric")) == pl.String()
    kind = node_kind(
        "A", ("id",), pl.Schema({"id": pl.Int64(), "small": pl.Decimal(10, 2), "large": pl.Decimal(30, 2)})
    )
    frame = pl.DataFrame(
        {"tenant_id": ["t"], "id": [1], "small": [Decimal("7.99")], "large": [Decimal("12345678901234567890.12")]},
        schema={"tenant_id": pl.String, "id": pl.Int64, "small": pl.Decimal(10, 2), "large": pl.Decimal(30, 2)},
    )
    assert node_rows(kind, frame).row(0, named=True) == {
        "tenant_id": "t", "id": 1, "small": 7.99, "large": "12345678901234567890.12",
    }  # fmt: skip


@pytest.mark.parametrize(
    "condition",
    [
        "a.id", "a.id = 1", "a.id > b.id", "a.id = b.id OR true", "id = b.id", "a.id = b.id; DROP TABLE x",
        "a.id = lower(b.id)", "a.id = b.id AND b.id = c.id", "s.a.id = b.id", "",
    ],
)  # fmt: skip
def test_a_condition_that_is_no_equation_of_columns_is_refused(condition: str) -> None:
    with pytest.raises(ConfigError, match="relationship_mappings row 3"):
        parse_join(row(condition))


def joined(condition: str, a: pl.DataFrame, b: pl.DataFrame, **more: pl.DataFrame) -> list[tuple[object, ...]]:
    frames = {"A": a, "B": b, **more}
    kinds = {name: node_kind(name, (f.columns[1],), f.drop("tenant_id").schema) for name, f in frames.items()}
    return join_labels(row(condition, via=next(iter(more), None)), frames, kinds).rows()


def frame(**columns: list[object]) -> pl.DataFrame:
    return pl.DataFrame({"tenant_id": ["t"] * len(next(iter(columns.values()))), **columns})


def test_alternatives_and_text_comparison() -> None:
    users = frame(id=["a@x", "2", "c"])
    accounts = frame(account_id=[1, 2], email=["a@x", "b@x"])
    pairs = joined("u.id = a.email OR u.id = toString(a.account_id)", users, accounts)
    assert pairs == [("t", "2", 2), ("t", "a@x", 1)]


def test_a_table_in_between_joins_two_others() -> None:
    links = frame(x=[1, 1, 2], y=[10, 11, 10])
    assert joined("a.x = l.x AND l.y = b.y", frame(x=[1, 2]), frame(y=[10]), L=links) == [("t", 1, 10), ("t", 2, 10)]


def test_rows_of_other_tenants_and_nulls_never_join() -> None:
    a = pl.DataFrame({"tenant_id": ["t", "u", "t"], "x": ["1", "1", None]})
    b = pl.DataFrame({"tenant_id": ["t", "t"], "y": ["1", None]})
    assert joined("a.x = b.y", a, b) == [("t", "1", "1")]


@pytest.mark.parametrize("after", [["1"], [1.5], [None]])
def test_a_column_of_another_type_changes_every_row(after: list[object]) -> None:
    def extract(values: list[object]) -> pl.DataFrame:
        return pl.DataFrame({"tenant_id": "t", "id": [1], "v": values, "extracted_at": "", "run_id": "r"})

    rows, changed = changed_rows(extract([1]), extract(after), ["id"])
    assert rows["v"].to_list() == after
    assert changed > 0


def test_whole_numbers_are_whole_in_the_graph() -> None:
    assert node_kind("A", ("id",), pl.Schema({"id": pl.Decimal(10, 0)})).properties["id"] == pl.Int64()


def test_unchanged_rows_keep_the_time_of_their_last_change() -> None:
    def extract(run: str, *values: tuple[int, str]) -> pl.DataFrame:
        return pl.DataFrame(
            [("t", key, value, run, run) for key, value in values],
            schema=["tenant_id", "id", "v", "extracted_at", "run_id"], orient="row",
        )  # fmt: skip

    rows, changed = changed_rows(extract("r1", (1, "a"), (2, "b"), (3, "c")), extract("r2", (1, "a"), (2, "x")), ["id"])
    assert sorted(rows.select("id", "run_id").rows()) == [(1, "r1"), (2, "r2")]
    assert changed == 2

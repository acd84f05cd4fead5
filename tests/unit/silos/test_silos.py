import dataclasses
from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl
import pytest

from c360_pipeline.core.catalog.changes import difference
from c360_pipeline.core.silos.control_rows import (
    Column,
    ControlRows,
    FoundTable,
    RelationshipRow,
    SourceDatabase,
    SourceTable,
    lake_type,
    node_kind,
    node_rows,
    typed,
    unusable_keys,
)
from c360_pipeline.core.silos.joins import join_count, join_labels, join_problems, parse_join
from c360_pipeline.core.silos.plan import FROZEN, make_plan, plan_changes, plan_what_can_be
from c360_pipeline.errors import ConfigError, ContractError

DATABASE = SourceDatabase(1, "acme", "profiles_db", "h", 1, "u", "env:P")
TABLE = SourceTable(7, 1, "public", "accounts", ("account_id",))
COLUMNS = {n: Column(n, t) for n, t in (("account_id", "int8"), ("email", "text"), ("hashed_password", "text"))}
FOUND = {7: FoundTable(COLUMNS, 3)}
CONTROL = ControlRows((DATABASE,), (TABLE,), {(7, "hashed_password"): "a credential"}, {7: "Account"}, ())


def test_tables_of_one_name_have_places_of_their_own_in_the_lake() -> None:
    other, elsewhere = (dataclasses.replace(DATABASE, database_id=n, tenant_id="globex") for n in (2, 3))
    tables = (
        TABLE,
        dataclasses.replace(TABLE, table_id=8, schema_name="shop"),
        dataclasses.replace(TABLE, table_id=9, database_id=2),
        dataclasses.replace(TABLE, table_id=10, table_name="Accounts", database_id=3),
    )  # fmt: skip
    control = dataclasses.replace(
        CONTROL, databases=(DATABASE, other, elsewhere), tables=tables, labels={}, excluded={}
    )
    plan = make_plan(control, dict.fromkeys((7, 8, 9, 10), FOUND[7]))
    assert [(extract.name, extract.lake_table) for extract in plan.extracts] == [
        ("profiles_db.public.accounts", "silos/profiles_db/accounts"),
        ("profiles_db.shop.accounts", "silos/profiles_db/shop.accounts"),
        ("profiles_db#2.public.accounts", "silos/profiles_db/public.accounts"),
        ("profiles_db.public.Accounts", "silos/profiles_db.3/public.Accounts"),
    ]
    assert control.table_names == [extract.name for extract in plan.extracts]


def test_what_can_not_be_is_set_aside_and_the_rest_goes_on() -> None:
    tables = (TABLE, dataclasses.replace(TABLE, table_id=8, table_name="gone"),
              dataclasses.replace(TABLE, table_id=9, table_name="away", database_id=2))  # fmt: skip
    databases = (DATABASE, dataclasses.replace(DATABASE, database_id=2, db_name="down_db"))
    mappings = (
        RelationshipRow(3, "Account", "Nothing", "X", "a.x = n.y", None),
        RelationshipRow(4, "Account", "Away", "Y", "a.x = n.y", None),
    )
    labels = {7: "Account", 9: "Away"}
    control = dataclasses.replace(
        CONTROL, databases=databases, tables=tables, relationships=mappings, labels=labels
    )  # fmt: skip
    plan = plan_what_can_be(control, FOUND, None, {2: "the server does not answer"})
    assert [extract.name for extract in plan.extracts] == ["profiles_db.public.accounts"]
    assert list(plan.set_aside) == ["profiles_db.public.gone", "down_db.public.away", "(Account)-[:X]->(Nothing)"]
    assert "source_tables row 9" in plan.set_aside["down_db.public.away"][0]
    # Of a mapping to a label that nobody could look at nothing is said.
    assert [row.mapping_id for row in plan.relationships] == [4]


@pytest.mark.parametrize(
    ("key", "columns", "says"),
    [
        (("email",), COLUMNS, "has two keys"),
        (("account_id",), {**COLUMNS, "email": Column("email", "int4")}, "has two types of column 'email'"),
    ],
)
def test_one_label_has_one_key_and_one_type_per_column(
    key: tuple[str, ...], columns: dict[str, Column], says: str
) -> None:
    second = dataclasses.replace(TABLE, table_id=8, table_name="people", key_columns=key)
    control = dataclasses.replace(CONTROL, tables=(TABLE, second), labels={7: "Account", 8: "Account"})
    with pytest.raises(ConfigError, match=says):
        make_plan(control, {7: FOUND[7], 8: FoundTable(columns)})


def row(condition: str, via: str | None = None, kind: str = "KNOWS") -> RelationshipRow:
    return RelationshipRow(3, "A", "B", kind, condition, via)


def test_excluded_columns_are_not_read() -> None:
    (extract,) = make_plan(CONTROL, FOUND).extracts
    assert [c.name for c in extract.columns] == ["account_id", "email"]
    assert extract.left_out == {"hashed_password": "a credential"}
    assert extract.lake_table == "silos/profiles_db/accounts"


INCREMENTAL = dataclasses.replace(TABLE, snapshot_mode="incremental")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"excluded": {(7, "account_id"): ""}}, "key column 'account_id' is excluded"),
        ({"excluded": {(7, "nope"): ""}}, "excluded column 'nope' does not exist"),
        ({"labels": {7: "Account) DETACH DELETE (n"}}, "label"),
        ({"labels": {7: "User"}}, "is one of the graph's own"),
        ({"databases": (dataclasses.replace(DATABASE, db_name="../../events"),)}, "folder"),
        ({"databases": (dataclasses.replace(DATABASE, db_name=".."),)}, "folder"),
        ({"tables": (dataclasses.replace(TABLE, key_columns=("id",)),)}, "key column 'id' does not exist"),
        ({"tables": (dataclasses.replace(TABLE, table_id=8),)}, "no such table"),
        ({"tables": (dataclasses.replace(TABLE, schema_name="pg_catalog"),)}, "PostgreSQL's own"),
        ({"tables": (dataclasses.replace(TABLE, schema_name="information_schema"),)}, "PostgreSQL's own"),
        ({"tables": (INCREMENTAL,)}, "needs a cursor_column"),
        ({"tables": (dataclasses.replace(INCREMENTAL, cursor_column="hashed_password"),)}, "is excluded or does not"),
        ({"tables": (dataclasses.replace(INCREMENTAL, cursor_column="email"),)}, "'email' is text"),
    ],
)
def test_control_rows_that_can_not_be_are_all_named(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=r"source_tables row \d") as caught:
        make_plan(dataclasses.replace(CONTROL, **change), FOUND)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        (
            RelationshipRow(3, "User", "Account", "X", "u.id = a.email AND u.tenant_id = a.tenant_id", None),
            "leave it out",
        ),
        (
            RelationshipRow(3, "User", "Account", "X", "u.first_seen = a.email", None),
            "u.first_seen is excluded or does",
        ),
        (RelationshipRow(3, "User", "Account", "IS_ACCOUNT", "u.id = a.hashed_password", None), "is excluded or does"),
        (RelationshipRow(3, "User", "Account", "IS_ACCOUNT", "u.id = a.account_id", None), "with toString"),
        (RelationshipRow(3, "User", "Person", "IS_ACCOUNT", "u.id = a.email", None), "has the label Person"),
        (RelationshipRow(3, "User", "Account", "IS]->() DELETE", "u.id = a.email", None), "must match"),
        (RelationshipRow(3, "User", "Account", "X", "u.id = a.email OR u.id = u.id", None), "same alias on both"),
    ],
)
def test_a_mapping_that_can_not_be_is_refused_before_anything_is_read(mapping: RelationshipRow, says: str) -> None:
    with pytest.raises(ConfigError, match="relationship_mappings row 3") as caught:
        make_plan(dataclasses.replace(CONTROL, relationships=(mapping,)), FOUND)
    assert says in str(caught.value)


def test_an_unreadable_column_is_named_with_the_way_out() -> None:
    hidden = {**COLUMNS, "email": Column("email", "text", readable=False)}
    with pytest.raises(ConfigError, match=r"may not read column 'email': run what `c360 grants` prints"):
        make_plan(CONTROL, {7: FoundTable(hidden)})


@pytest.mark.parametrize(
    ("columns", "says"), [(("Email", "email"), "differ in case only"), (("__c360_gone",), "kept for us")]
)
def test_names_that_would_clash_are_refused(columns: tuple[str, ...], says: str) -> None:
    found = {**COLUMNS, **{name: Column(name, "text") for name in columns}}
    with pytest.raises(ConfigError, match=says):
        make_plan(CONTROL, {7: FoundTable(found)})


NEW_COLUMN = {**COLUMNS, "phone": Column("phone", "text")}
OTHER_TYPE = {**COLUMNS, "email": Column("email", "varchar")}
ONE_GONE = {name: column for name, column in COLUMNS.items() if name != "email"}


def with_policy(policy: str) -> ControlRows:
    return dataclasses.replace(CONTROL, tables=(dataclasses.replace(TABLE, drift_policy=policy),))


@pytest.mark.parametrize(
    ("policy", "columns", "outcome"),
    [
        ("evolve", NEW_COLUMN, ["account_id", "email", "phone"]), ("evolve", ONE_GONE, ["account_id"]),
        ("evolve", OTHER_TYPE, ["account_id", "email"]), ("freeze", NEW_COLUMN, ["account_id", "email"]),
        ("freeze", ONE_GONE, "column 'email' is gone"), ("freeze", OTHER_TYPE, "'email' is varchar and was text"),
        ("fail", NEW_COLUMN, "column 'phone' is new"), ("fail", ONE_GONE, "column 'email' is gone"),
        ("fail", OTHER_TYPE, "'email' is varchar and was text"), ("fail", COLUMNS, ["account_id", "email"]),
    ],
)  # fmt: skip
def test_drift_is_met_as_the_table_says(policy: str, columns: dict[str, Column], outcome: list[str] | str) -> None:
    control = with_policy(policy)
    applied = make_plan(control, FOUND).document
    found = {7: FoundTable(columns)}
    if isinstance(outcome, str):
        with pytest.raises(ConfigError, match=outcome):
            make_plan(control, found, applied)
    else:
        (extract,) = make_plan(control, found, applied).extracts
        assert [c.name for c in extract.columns] == outcome
        assert ("phone" in extract.left_out) == (policy == "freeze" and "phone" in columns)


def test_a_plan_says_what_changed_since_the_last() -> None:
    before = make_plan(CONTROL, FOUND)
    assert plan_changes(before.document, make_plan(CONTROL, FOUND).document) == []
    assert before.hash == make_plan(CONTROL, {7: dataclasses.replace(FOUND[7], rows=99)}).hash
    excluded = dataclasses.replace(CONTROL, excluded={**CONTROL.excluded, (7, "email"): "private"})
    after = make_plan(excluded, {7: FoundTable(NEW_COLUMN)})
    assert after.hash != before.hash
    assert [c.change for c in plan_changes(before.document, after.document)] == [
        "column phone (text) is new", "column email is left out now (private)",
    ]  # fmt: skip
    assert [c.change for c in plan_changes(None, before.document)] == ["table is new"]
    nothing = make_plan(dataclasses.replace(CONTROL, tables=()), {})
    assert [c.change for c in plan_changes(before.document, nothing.document)] == ["table is not in the plan any more"]


def test_a_frozen_table_keeps_leaving_a_column_out() -> None:
    control = with_policy("freeze")
    applied = make_plan(control, FOUND).document
    found = {7: FoundTable(NEW_COLUMN)}
    second = make_plan(control, found, applied)
    assert second.extracts[0].left_out["phone"] == FROZEN
    assert make_plan(control, found, second.document).hash == second.hash


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
        "a.id = upper(b.id)", "a.id = b.id AND b.id = c.id", "s.a.id = b.id", "",
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


@pytest.mark.parametrize(
    ("condition", "pairs"),
    [
        ("a.email = u.id", 1), ("lower(a.email) = lower(u.id)", 2), ("lower(trim(a.email)) = LOWER(TRIM(u.id))", 3),
        ("normalForm(a.email) = normalForm(u.id)", 4), ("lower(toString(a.n)) = u.id", 0),
    ],
)  # fmt: skip
def test_what_is_compared_can_be_a_function_of_a_column(condition: str, pairs: int) -> None:
    accounts = frame(n=[1, 2, 3, 4], email=["a@x.y", "B@x.y", " c@x.y", "d\u200b@x.y"])
    users = frame(id=["a@x.y", "b@x.y", "C@x.y ", "D@x.y"])
    assert len(joined(condition, accounts, users)) == pairs


def test_what_a_mapping_passes_over_because_of_spelling_is_counted() -> None:
    frames = {"A": frame(x=[1, 2, 3], email=["a@x.y", "B@x.y", None]), "B": frame(y=["a@x.y", "b@x.y", "c@x.y"])}
    kinds = {name: node_kind(name, (f.columns[1],), f.drop("tenant_id").schema) for name, f in frames.items()}
    counted = join_count(row("a.email = b.y"), frames, kinds)
    assert dataclasses.astuple(counted)[1:] == (3, 1, 3, 1, 1)
    assert join_count(row("lower(a.email) = lower(b.y)"), frames, kinds).by_form == 0


def test_a_table_in_between_joins_two_others() -> None:
    links = frame(x=[1, 1, 2], y=[10, 11, 10])
    assert joined("a.x = l.x AND l.y = b.y", frame(x=[1, 2]), frame(y=[10]), L=links) == [("t", 1, 10), ("t", 2, 10)]


def test_rows_of_other_tenants_and_nulls_never_join() -> None:
    a = pl.DataFrame({"tenant_id": ["t", "u", "t"], "x": ["1", "1", None]})
    b = pl.DataFrame({"tenant_id": ["t", "t"], "y": ["1", None]})
    assert joined("a.x = b.y", a, b) == [("t", "1", "1")]


def test_whole_numbers_are_whole_in_the_graph() -> None:
    assert node_kind("A", ("id",), pl.Schema({"id": pl.Decimal(10, 0)})).properties["id"] == pl.Int64()


def test_infinity_is_the_end_of_the_calendar_and_what_lies_beyond_is_refused() -> None:
    at = Column("at", "timestamptz")
    infinite = [2**63 - 1 + 946_684_800_000_000 - 2**64, -(2**63) + 946_684_800_000_000, 0, None]
    values = pl.Series("at", infinite).cast(pl.Datetime("us", "UTC"))
    rows = pl.DataFrame({"id": range(4)}).with_columns(values)
    held = typed(rows, [Column("id", "int4"), at], ["id"])["at"].to_list()
    assert held == [
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC), None,
    ]  # fmt: skip
    days = pl.DataFrame(
        {"id": range(3), "at": pl.Series([2**31 - 1 + 10_957 - 2**32, -(2**31) + 10_957, 0]).cast(pl.Int32)}
    )
    dates = typed(days.with_columns(pl.col("at").cast(pl.Date)), [Column("at", "date")], ["id"])["at"].to_list()
    assert dates == [date(9999, 12, 31), date(1, 1, 1), date(1970, 1, 1)]
    beyond = rows.with_columns(at=pl.lit(-(10**17)).cast(pl.Datetime("us", "UTC")))
    with pytest.raises(ContractError, match=r"column 'at' of the row with id = '0': .* is no timestamptz that"):
        typed(beyond, [Column("id", "int4"), at], ["id"])


def test_a_value_that_its_type_can_not_hold_is_named() -> None:
    rows = pl.DataFrame({"id": [1, 2], "n": ["1.50", "NaN"]})
    with pytest.raises(ContractError, match=r"column 'n' of the row with id = '2': NaN is no numeric\(10,2\)"):
        typed(rows, [Column("n", "numeric", 10, 2)], ["id"])


def test_rows_are_compared_value_by_value() -> None:
    schema = {"id": pl.Int64, "v": pl.Float64}
    held = pl.DataFrame([(1, 1.0), (2, None), (3, 3.0), (4, float("nan"))], schema=schema, orient="row")
    read = pl.DataFrame([(1, 1.0), (2, 2.0), (5, None), (4, float("nan"))], schema=schema, orient="row")
    changes = difference(held, read, ["id"])
    assert changes.inserted["id"].to_list() == [5]
    assert changes.updated.rows() == [(2, 2.0)]
    assert changes.deleted["id"].to_list() == [3]
    assert difference(held, read, ["id"], is_all=False).deleted.is_empty()


@pytest.mark.parametrize(
    ("ids", "says"), [([1, None], "1 rows have no value"), ([1, 2, 1], "2 rows share a key"), ([1, 2], None)]
)
def test_keys_that_name_no_row_are_found(ids: list[int | None], says: str | None) -> None:
    problem = unusable_keys(pl.DataFrame({"id": ids}, schema={"id": pl.Int64}), ["id"])
    assert problem is None if says is None else says in (problem or "")


def test_a_join_needs_equal_types_or_text() -> None:
    kinds = {
        "A": node_kind("A", ("x",), pl.Schema({"x": pl.Int64()})),
        "B": node_kind("B", ("y",), pl.Schema({"y": pl.String()})),
    }
    assert len(join_problems(row("a.x = b.y"), kinds)) == 1
    assert join_problems(row("toString(a.x) = b.y"), kinds) == []
    (said,) = join_problems(row("lower(a.x) = b.y"), kinds)
    assert "say toString(a.x) inside of it" in said

"""Erasure of people: which rows of silos are theirs, by which values they are known, and where bytes hold these.

A row is a person's when a mapping compares it with their user, or when it names such a row by its key or by a column in
which no two rows are alike: subscriptions of an account are theirs, tickets that bear its e-mail address, not the plan
that a subscription names. Source: "Customer 360 Graph Pipeline" (the mappings).
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from ahocorasick_rs import BytesAhoCorasick

from c360_pipeline.core.arrays.row_hashes import trace_hash
from c360_pipeline.core.contract.identifiers import names_nobody, normal_form
from c360_pipeline.core.landing.suppressed import Suppressed
from c360_pipeline.core.projection.graph import NodeKind
from c360_pipeline.core.silos.control_rows import LINEAGE, RelationshipRow
from c360_pipeline.core.silos.joins import Join, Term, labels_by_alias, parse_join

USER = "User"
LEAST_CHARACTERS = 6
"""Of a value that is looked for in bytes: shorter ones, and numbers, are everywhere."""


@dataclass(frozen=True)
class Person:
    """A user of a tenant, as events name them."""

    tenant_id: str
    user_id: str

    @classmethod
    def named(cls, tenant_id: str, user_id: str) -> "Person":
        """By names in any of Unicode's forms, brought to the one that the archive has."""
        return cls(unicodedata.normalize("NFC", tenant_id), unicodedata.normalize("NFC", user_id))


def users_frame(people: Iterable[Person]) -> pl.DataFrame:
    """tenant_id, user_id."""
    rows = [(one.tenant_id, one.user_id) for one in people]
    return pl.DataFrame(rows, schema={"tenant_id": pl.String, "user_id": pl.String}, orient="row")


VISIT = ("session_id", "anonymous_id")
"""A visit is told from others by its session and its visitor."""


@dataclass(frozen=True)
class Traces:
    """Visitors and visits that are people's alone: what they did before they were known.

    Attributes:
        visitors: tenant_id, anonymous_id, in every spelling that the archive has.
        visits: tenant_id, session_id, anonymous_id of visits on devices that are not theirs alone; the same.
        shared: tenant_id, anonymous_id of visitors that others were named with, too.
    """

    visitors: tuple[tuple[str, str], ...] = ()
    visits: tuple[tuple[str, str, str], ...] = ()
    shared: tuple[tuple[str, str], ...] = ()

    def frames(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """tenant_id, anonymous_id of visitors; tenant_id, session_id, anonymous_id of visits."""
        return _ids(self.visitors, "anonymous_id"), _ids(self.visits, *VISIT)


NO_TRACES = Traces()
NOBODY = Suppressed()


def _ids(rows: Iterable[tuple[str, ...]], *columns: str) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=dict.fromkeys(("tenant_id", *columns), pl.String), orient="row")


def theirs(rows: pl.LazyFrame, people: Iterable[Person], traces: Traces) -> pl.LazyFrame:
    """Of events those that are people's: with their user, or of nobody known and one of their visitors or visits.

    Args:
        rows: with tenant_id, user_id, anonymous_id and session_id.
        people: who.
        traces: of theirs.
    """
    return _marked(rows, people, traces).filter("is_theirs").drop("is_theirs")


def of_others(rows: pl.LazyFrame, people: Iterable[Person], traces: Traces) -> pl.LazyFrame:
    """All that are not."""
    return _marked(rows, people, traces).filter(~pl.col("is_theirs")).drop("is_theirs")


def _marked(rows: pl.LazyFrame, people: Iterable[Person], traces: Traces) -> pl.LazyFrame:
    visitors, visits = traces.frames()
    nobody = pl.col("user_id").is_null() | names_nobody(normal_form(pl.col("user_id")))
    marks = []
    for number, ids in enumerate((users_frame(people), visitors, visits)):
        if ids.height:
            mark = f"is_by_{number}"
            marked = ids.unique().lazy().with_columns(pl.lit(value=True).alias(mark))
            rows = rows.join(marked, on=ids.columns, how="left")
            marks.append(pl.col(mark) if number == 0 else pl.col(mark) & nobody)
    said = pl.any_horizontal(pl.lit(value=False), *marks).fill_null(value=False)
    return rows.with_columns(is_theirs=said).drop(pl.selectors.starts_with("is_by_"))


def traces_of(
    events: pl.LazyFrame,
    journeys: pl.LazyFrame,
    people: Iterable[Person],
    nobody: Iterable[str] = (),
    listed: Suppressed = NOBODY,
) -> Traces:
    """The visitors and visits that are people's alone, and the visitors that they share with others.

    A visitor is theirs where every known user that it was named with is one of these people, or where it was named
    with none and every known user of its journeys is. A visit is theirs where every known user of its session is, and
    its visitor was not named with others alone. Spellings of one normal form are one id.

    Args:
        events: tenant_id, event_id, user_id, anonymous_id, session_id of one tenant.
        journeys: tenant_id, event_id, journey_id.
        people: who, in any spelling.
        nobody: words that name nobody, beside those that the project knows.
        listed: the suppressed; visitors that were shared with one of them stay shared.
    """
    names = ("user_id", *VISIT)
    forms = {name: normal_form(pl.col(name)) for name in names}
    words = list(nobody)
    form_of = {
        name: pl.when(~names_nobody(form, words)).then(form).alias(f"{name}_form") for name, form in forms.items()
    }
    asked = users_frame(people).lazy().select("tenant_id", user_id_form=forms["user_id"]).unique()
    facts = events.with_columns(*form_of.values()).join(
        asked.with_columns(is_asked=True), on=["tenant_id", "user_id_form"], how="left"
    )
    known, ours = pl.col("user_id_form").is_not_null(), pl.col("is_asked").fill_null(value=False)
    counts = {"asked": (known & ours).any(), "others": (known & ~ours).any()}
    alone = pl.col("asked") & ~pl.col("others")
    visitor, session = ["tenant_id", "anonymous_id_form"], ["tenant_id", "session_id_form"]
    as_shared = listed.covered(trace_hash("shared", pl.col("anonymous_id_form")))
    was_shared = as_shared.is_in(listed.listed["user_hash"].implode())
    visitors = (
        facts.drop_nulls("anonymous_id_form")
        .group_by(visitor)
        .agg(**counts)
        .with_columns(others=pl.col("others") | was_shared)
        .collect(engine="streaming")
    )
    placed = facts.join(journeys, on=["tenant_id", "event_id"])
    lone = placed.group_by("tenant_id", "journey_id").agg(**counts).filter(alone)
    journey = ["tenant_id", "journey_id"]
    inside, elsewhere = placed.join(lone, on=journey, how="semi"), placed.join(lone, on=journey, how="anti")
    unnamed = visitors.lazy().filter(~pl.col("asked") & ~pl.col("others"))
    # Every journey of such a visitor has to be theirs, and one at least.
    by_journey = unnamed.join(inside, on=visitor, how="semi").join(elsewhere, on=visitor, how="anti")
    own = pl.concat([visitors.lazy().filter(alone).select(visitor), by_journey.select(visitor)]).unique()
    of_others_alone = visitors.lazy().filter(pl.col("others") & ~pl.col("asked"))
    sessions = facts.drop_nulls("session_id_form").group_by(session).agg(**counts).filter(alone)
    visits = (
        facts.filter(~known)
        .drop_nulls("anonymous_id_form")
        .join(sessions, on=session, how="semi")
        .join(of_others_alone, on=visitor, how="anti")
        .join(own, on=visitor, how="anti")
    )
    spelled = facts.drop_nulls("anonymous_id_form").join(own, on=visitor, how="semi")
    shared = facts.join(visitors.lazy().filter(pl.col("asked") & pl.col("others")), on=visitor, how="semi")

    def rows(found: pl.LazyFrame, *columns: str) -> tuple[Any, ...]:
        return tuple(found.select("tenant_id", *columns).unique().sort(pl.all()).collect(engine="streaming").rows())

    return Traces(rows(spelled, "anonymous_id"), rows(visits, *VISIT), rows(shared, "anonymous_id"))


def own_rows(
    people: Iterable[Person],
    relationships: Sequence[RelationshipRow],
    frames: Mapping[str, pl.DataFrame],
    kinds: Mapping[str, NodeKind],
) -> dict[str, pl.DataFrame]:
    """The rows of silos that are these people's.

    Args:
        people: who.
        relationships: the mappings, of which none is wrong.
        frames: node rows of silo tables, by label.
        kinds: their kinds, by label.

    Returns:
        By label, the key columns of the rows.
    """
    found: dict[str, pl.DataFrame] = {}
    with_users = {**frames, USER: users_frame(people).rename({"user_id": "id"})}
    with_user_kind = {**kinds, USER: NodeKind(USER, ("id",), {"id": pl.String()})}
    usable = [row for row in relationships if with_users.keys() >= set(row.labels)]
    for row in usable:
        if USER in row.labels:
            _add_linked(row, found, with_users, with_user_kind)
    while True:
        before = {label: rows.height for label, rows in found.items()}
        for row in usable:
            _follow(row, found, frames, kinds)
        if before == {label: rows.height for label, rows in found.items()}:
            return found


def _add_linked(
    row: RelationshipRow,
    found: dict[str, pl.DataFrame],
    frames: Mapping[str, pl.DataFrame],
    kinds: Mapping[str, NodeKind],
) -> None:
    """Add the rows that are compared with the user; what lies behind a table between is not theirs by that."""
    join = parse_join(row)
    labels = labels_by_alias(row, join)
    (user,) = [alias for alias, label in labels.items() if label == USER]
    for other, label in labels.items():
        for on in _equations(join, user, other) if other != user else ():
            mine, theirs, keys = _sides(on)
            users = frames[USER].select("tenant_id", *mine)
            _add(found, kinds[label], frames[label].with_columns(theirs).join(users, on=keys, how="semi"))


def _add(found: dict[str, pl.DataFrame], kind: NodeKind, rows: pl.DataFrame) -> None:
    keys = rows.select(kind.key_columns)
    found[kind.label] = pl.concat([found.get(kind.label, keys.clear()), keys]).unique()


def _follow(
    row: RelationshipRow,
    found: dict[str, pl.DataFrame],
    frames: Mapping[str, pl.DataFrame],
    kinds: Mapping[str, NodeKind],
) -> None:
    """Add the rows that name rows found before: by their whole key, or by a column in which no two rows are alike."""
    join = parse_join(row)
    silos = {alias: label for alias, label in labels_by_alias(row, join).items() if label != USER}
    pairs = [(owner, other) for owner in silos for other in silos if owner != other and silos[owner] in found]
    for owner, other in pairs:
        label, other_label = silos[owner], silos[other]
        for on in _equations(join, owner, other):
            mine, theirs, keys = _sides(on)
            named = frames[label].select("tenant_id", *kinds[label].key, *mine).drop_nulls()
            if not {term.column for term, _ in on} >= set(kinds[label].key):
                if {term.column for _, term in on} >= set(kinds[other_label].key):
                    continue  # it is the other that is named by its key
                if named.select(keys).is_duplicated().any():
                    continue  # not a name of rows: a plan that one account alone has today
            owners = named.join(found[label], on=kinds[label].key_columns, how="semi").select(keys)
            _add(found, kinds[other_label], frames[other_label].with_columns(theirs).join(owners, on=keys, how="semi"))


def _equations(join: Join, owner: str, other: str) -> Iterator[list[tuple[Term, Term]]]:
    """Of each alternative the equations between two aliases, the owner's side first."""
    for alternative in join.alternatives:
        turned = [pair if pair[0].alias == owner else (pair[1], pair[0]) for pair in alternative]
        between = [(mine, theirs) for mine, theirs in turned if mine.alias == owner and theirs.alias == other]
        if between:
            yield between


def _sides(on: Sequence[tuple[Term, Term]]) -> tuple[list[pl.Expr], list[pl.Expr], list[str]]:
    """Columns of both sides of equations under the same names, and these names with the tenant."""
    names = [f"__{n}" for n in range(len(on))]
    mine, theirs = (
        [pair[side].of(pl.col(pair[side].column)).alias(n) for n, pair in zip(names, on, strict=True)]
        for side in (0, 1)
    )
    return mine, theirs, ["tenant_id", *names]


def own_values(rows: pl.DataFrame, others: pl.DataFrame) -> list[str]:
    """Texts in a person's rows that no other row has in the same column: an e-mail address, not the name of a plan.

    Args:
        rows: theirs.
        others: all others of the table.
    """
    found: set[str] = set()
    for name, dtype in rows.schema.items():
        if dtype == pl.String and name not in LINEAGE:
            shared = others[name].drop_nulls().unique() if name in others.columns else pl.Series([], dtype=pl.String)
            found |= set(rows[name].drop_nulls().unique()) - set(shared)
    return sorted(value for value in found if is_identifier(value))


def is_distinctive(value: str) -> bool:
    """Whether a value can be looked for in bytes, where nothing says what it stands for."""
    return len(value) >= LEAST_CHARACTERS and not value.isdecimal()


def is_identifier(value: str) -> bool:
    """Whether a text of a silo's row can be somebody's: words alone are topics, states, cities."""
    return is_distinctive(value) and not value.isalpha()


def is_overwritable(value: str) -> bool:
    """Whether a value may be overwritten in logs, where one word could be a part of what they say.

    Names that logs need are words with underscores between them: of steps, assets, events, and of their fields.
    """
    return is_distinctive(value) and (not value.isidentifier() or any(c.isdecimal() for c in value))


class SearchTerms:
    """Values that are looked for in texts and bytes, all at once, each as a word of its own.

    Args:
        values: distinctive ones.
    """

    def __init__(self, values: Iterable[str]) -> None:
        self.values = sorted(set(values))
        self._patterns = sorted({form for value in self.values for form in _forms(value)})
        self._finder = BytesAhoCorasick([form.encode() for form in self._patterns]) if self._patterns else None

    def _found(self, content: bytes) -> Iterator[tuple[int, int, int]]:
        """Numbers of patterns, starts and ends of words.

        One is not a part of a longer word, nor of one that goes on behind a sign: u-1 is not in u-1-2.
        """
        if self._finder is None:
            return
        for pattern, start, end in self._finder.find_matches_as_indexes(content, overlapping=True):
            before, after = _ESCAPE.sub(b" ", content[max(start - 6, 0) : start])[-2:], content[end : end + 2]
            goes_on = after[:1] in _SIGNS and _is_of_a_word(after[1:])
            came_from = before[-1:] in _SIGNS and _is_of_a_word(before[:-1])
            if not (_is_of_a_word(after[:1]) or _is_of_a_word(before[-1:]) or goes_on or came_from):
                yield pattern, start, end

    def count(self, content: bytes) -> int:
        """How often they stand in bytes."""
        return sum(1 for _ in self._found(content))

    def replaced(self, content: bytes, by: bytes) -> bytes:
        """The bytes, each value overwritten with one byte as often as it is long: nothing moves."""
        result = bytearray(content)
        for _, start, end in self._found(content):
            result[start:end] = by * (end - start)
        return bytes(result)

    def _maybe_in(self, texts: pl.Series) -> pl.Series:
        """Numbers of texts that hold one, maybe as a part of a longer word."""
        return texts.str.contains_any(self._patterns).fill_null(value=False).arg_true()

    def are_in(self, texts: pl.Series) -> pl.Series:
        """Whether each text holds one; false for null."""
        if self._finder is None:
            return pl.Series([False]).new_from_index(0, texts.len())
        rows = self._maybe_in(texts)
        hits = [row for row, text in zip(rows, texts.gather(rows), strict=True) if self.count(text.encode())]
        return pl.int_range(texts.len(), eager=True).is_in(hits)

    def found_in(self, texts: pl.Series) -> set[str]:
        """The values that stand in one of the texts."""
        if self._finder is None:
            return set()
        found = {pattern for t in texts.gather(self._maybe_in(texts)) for pattern, _, _ in self._found(t.encode())}
        return {value for value in self.values if any(self._patterns[n] in _forms(value) for n in found)}

    def hits(self, texts: pl.Series) -> int:
        """In how many texts they stand."""
        return int(self.are_in(texts).sum())


def _forms(value: str) -> tuple[str, ...]:
    """A value as it is, and as JSON writes it, with and without letters beyond ASCII."""
    return value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]


_ESCAPE = re.compile(rb"\\(?:[bfnrt]|u[0-9a-fA-F]{4})$")
"""A letter behind a backslash is not the end of a word."""
_SIGNS = (b"-", b".", b"@", b"+")


def _is_of_a_word(byte: bytes) -> bool:
    return byte.isalnum() or byte == b"_"

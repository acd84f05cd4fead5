"""The document that says whom an audience holds, read and checked.

A document is JSON: a name, a tenant, and conditions that `all`, `any` and `not` join. docs/audiences.md has the words.
Look also at Segment's Engage, PostHog's cohorts and Customer.io's segments, from which readers know them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from c360_pipeline.errors import ConfigError

ANY_ACTION = "*"
MAX_AMOUNT = 10**15
MAX_CONDITIONS, MAX_DEPTH, MAX_DAYS, MAX_VALUES = 50, 8, 3_660, 1_000
SAID_FAULTS = 5
DESTINATIONS = ("bucket", "webhook", "postgres")
_NO_NAME = re.compile(r"^(list\[|constrained-|str$|int$|float$|\[key\])")
"""Steps by which the checker says which type it tried."""
PATHS = ("new", "size", "apply")
"""What pages and routes are called that stand where the name of an audience would."""
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,62}$"

Text = Annotated[StrictStr, Field(min_length=1, max_length=1_024)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_VALUES)]
Days = Annotated[StrictInt, Field(ge=1, le=MAX_DAYS)]
Count = Annotated[StrictInt, Field(ge=0, le=1_000_000_000)]
Number = (
    Annotated[StrictInt, Field(ge=-MAX_AMOUNT, le=MAX_AMOUNT)]
    | Annotated[StrictFloat, Field(allow_inf_nan=False, ge=-MAX_AMOUNT, le=MAX_AMOUNT)]
)


class Part(BaseModel):
    """A part of a document: names that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Amount(Part):
    """Bounds of a number, both inclusive; one at least."""

    at_least: Number | None = None
    at_most: Number | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Amount":
        if self.at_least is None and self.at_most is None:
            raise ValueError("say at_least, at_most or both")
        return self


class Value(Part):
    """What a value must be; a value that is not there is none of it, but `not` it."""

    is_: Text | None = Field(None, alias="is")
    one_of: Texts | None = None
    at_least: Number | None = None
    at_most: Number | None = None
    is_set: Literal[True] | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> "Value":
        kinds = (self.is_, self.one_of, self.is_set)
        has_bounds = self.at_least is not None or self.at_most is not None
        if sum(kind is not None for kind in kinds) + has_bounds != 1:
            raise ValueError("say one of is, one_of, is_set, or at_least and at_most")
        return self


class Events(Part):
    """Which events are meant.

    Attributes:
        did: their action, or one of several; `*` is any.
        item: ids of products, of which an event is about one.
        category: categories of the catalogue, of which an event is about a product.
        where: attributes that an event has with these values.
    """

    did: Text | Texts
    item: Texts | None = None
    category: Texts | None = None
    where: Annotated[dict[Text, Text], Field(min_length=1, max_length=20)] | None = None


class Did(Events):
    """A customer has so many of some events; one at least where nothing is said.

    Attributes:
        at_least: how many at least, 1; 0 where only `at_most` is said.
        at_most: how many at most.
        within_days: only events of so many UTC days count, the day of the audience among them.
        first_within_days: the first of all such events is of these days.
        last_before_days: the last one is of an earlier day than these.
    """

    at_least: Count | None = None
    at_most: Count | None = None
    within_days: Days | None = None
    first_within_days: Days | None = None
    last_before_days: Days | None = None

    @property
    def least(self) -> int:
        """How many there are at least."""
        return self.at_least if self.at_least is not None else int(self.at_most is None)

    @model_validator(mode="after")
    def _can_hold(self) -> "Did":
        if self.at_most is not None and self.least > self.at_most:
            raise ValueError(f"at_least {self.least} is more than at_most {self.at_most}")
        return self


class Sequence(Part):
    """A customer did one thing after the other, with other events between them or not.

    Attributes:
        sequence: two events or more, each later than the one before.
        each_within_hours: each is at most so many hours later than the one before.
        within_days: only events of so many UTC days count, the day of the audience among them.
    """

    sequence: Annotated[list[Events], Field(min_length=2, max_length=10)]
    each_within_hours: Annotated[StrictInt, Field(ge=1, le=24 * MAX_DAYS)] | None = None
    within_days: Days | None = None


class Spent(Part):
    """What a customer paid for purchases whose events say prices.

    Attributes:
        spent: bounds.
        within_days: only events of so many UTC days count, the day of the audience among them.
        currency: only prices in it count; without it, who paid in several is in no bounds.
    """

    spent: Amount
    within_days: Days | None = None
    currency: Text | None = None


class Trait(Value):
    """The newest value of a trait."""

    trait: Text


class Consent(Part):
    """The newest state of a consent; `unknown` where nothing was said."""

    consent: Text
    is_: Literal["granted", "denied", "unknown"] = Field(alias="is")


class Group(Part):
    """A group that the customer belongs to: its type, and its id where one is meant."""

    group: Text
    id: Text | None = None


class Community(Part):
    """The community of users who touch the same products, by its number."""

    community: Annotated[
        list[Annotated[StrictInt, Field(ge=0, le=MAX_AMOUNT)]], Field(min_length=1, max_length=MAX_VALUES)
    ]


class Risk(Part):
    """How likely an account of the customer leaves."""

    risk: Annotated[list[Literal["low", "medium", "high", "left"]], Field(min_length=1)]


class AccountValue(Part):
    """What an account of the customer brings in a month, in the silo's currency."""

    monthly_value: Amount


class Leaving(Part):
    """How likely it is that the customer is not seen in the next four weeks, as `customer_churn` says."""

    leaving: Annotated[list[Literal["low", "medium", "high"]], Field(min_length=1)]


class YearlyValue(Part):
    """What the customer may be expected to pay in a year, as `customer_values` says; none is in no bounds."""

    value_in_a_year: Amount


class Label(Value):
    """A node that silos made and that is linked to the customer, by its label, and one of its properties."""

    label: Annotated[StrictStr, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")]
    property: Text | None = None
    is_set: Literal[True] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_enough(cls, said: Any) -> Any:
        # A label alone asks for nothing of a property.
        if isinstance(said, dict) and "property" not in said and "is_set" not in said:
            return {**said, "is_set": True}
        return said

    @model_validator(mode="after")
    def _has_a_property(self) -> "Label":
        if self.property is None and self.is_set is None:
            raise ValueError("say which property")
        return self


class All(Part):
    """Each of some conditions holds."""

    all: Annotated[list["Condition"], Field(min_length=1)]


class AnyOf(Part):
    """One of some conditions holds."""

    any: Annotated[list["Condition"], Field(min_length=1)]


class Not(Part):
    """A condition does not hold."""

    not_: "Condition" = Field(alias="not")


def _word_of(said: Any) -> str | None:
    """The word by which a condition is known."""
    if isinstance(said, Part):
        said = {(field.alias or name) for name, field in type(said).model_fields.items()}
    names = said if isinstance(said, (Mapping, set)) else ()
    return next((word for word in WORDS if word in names), None)


WORDS = (
    "all", "any", "not", "did", "sequence", "spent", "trait", "consent", "group", "community", "risk",
    "monthly_value", "leaving", "value_in_a_year", "label",
)  # fmt: skip
"""Each kind of condition is known by one of them."""
Condition: TypeAlias = Annotated[
    Annotated[All, Tag("all")]
    | Annotated[AnyOf, Tag("any")]
    | Annotated[Not, Tag("not")]
    | Annotated[Did, Tag("did")]
    | Annotated[Sequence, Tag("sequence")]
    | Annotated[Spent, Tag("spent")]
    | Annotated[Trait, Tag("trait")]
    | Annotated[Consent, Tag("consent")]
    | Annotated[Group, Tag("group")]
    | Annotated[Community, Tag("community")]
    | Annotated[Risk, Tag("risk")]
    | Annotated[AccountValue, Tag("monthly_value")]
    | Annotated[Leaving, Tag("leaving")]
    | Annotated[YearlyValue, Tag("value_in_a_year")]
    | Annotated[Label, Tag("label")],
    Discriminator(_word_of, custom_error_type="condition", custom_error_message=f"say one of {', '.join(WORDS)}"),
]
Leaf: TypeAlias = (
    Did | Sequence | Spent | Trait | Consent | Group | Community | Risk | AccountValue | Leaving | YearlyValue | Label
)


class ToBucket(Part):
    """Files in the product's own bucket: all members, and who entered and left since the file before.

    Attributes:
        to: `bucket`.
        format: of the files.
        purpose: members who refused it are left out.
    """

    to: Literal["bucket"]
    format: Literal["csv", "parquet"] = "csv"
    purpose: Text | None = None


class ToWebhook(Part):
    """Requests that say who entered and who left, signed as standardwebhooks.com says.

    Attributes:
        to: `webhook`.
        url: where to; its host is one of those that `C360_ACTIVATION_HOSTS` names.
        secret_ref: of the secret that requests are signed with: `env:C360_SOURCE_…` or `file:/…`.
        purpose: members who refused it are left out.
    """

    to: Literal["webhook"]
    url: Annotated[StrictStr, Field(pattern=r"^https?://[^\s/?#@\\]+(/[^\s\\]*)?$", max_length=2_000)]
    secret_ref: Annotated[StrictStr, Field(pattern=r"^(env|file):", max_length=1_024)]
    purpose: Text | None = None


class ToPostgres(Part):
    """Rows of a table: one for each member, with when it entered.

    Attributes:
        to: `postgres`.
        database: of the control rows, as `source_databases` names it; its login must be able to write.
        table: schema and name; it is made where it is missing.
        purpose: members who refused it are left out.
    """

    to: Literal["postgres"]
    database: Text
    table: Annotated[StrictStr, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}\.[a-z_][a-z0-9_]{0,62}$")]
    purpose: Text | None = None


Destination: TypeAlias = Annotated[ToBucket | ToWebhook | ToPostgres, Field(discriminator="to")]


class Audience(Part):
    """A group of customers.

    Attributes:
        audience: its name.
        tenant: whose customers.
        title: for people.
        description: what it is for.
        who: the condition that its members fulfil.
        deliver: where its members are sent, by a name of one's own.
    """

    audience: Annotated[StrictStr, Field(pattern=NAME_PATTERN)]
    tenant: Text
    title: Annotated[StrictStr, Field(max_length=200)] = ""
    description: Annotated[StrictStr, Field(max_length=2_000)] = ""
    who: Condition
    deliver: Annotated[dict[Annotated[StrictStr, Field(pattern=NAME_PATTERN)], Destination], Field(max_length=10)] = (
        Field(default_factory=dict)
    )

    @field_validator("audience")
    @classmethod
    def _has_a_page(cls, name: str) -> str:
        if name in PATHS:
            raise ValueError(f"{name} is a page; call the audience otherwise")
        return name

    def document(self) -> dict[str, Any]:
        """As it was written, without what says nothing."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=False)


def read_audience(document: Any) -> Audience:
    """A document's audience.

    Args:
        document: what JSON gave.

    Raises:
        ConfigError: it is not right; the message names each place.
    """
    name = document.get("audience") if isinstance(document, Mapping) else None
    where = f"audience {name[:64]!r}" if isinstance(name, str) else "audience"
    if _depth(document) > 2 * MAX_DEPTH:
        raise ConfigError(f"{where}: conditions stand in each other deeper than {MAX_DEPTH} times.")
    if not isinstance(document, Mapping):
        raise ConfigError("An audience is one JSON object, with audience, tenant and who (docs/audiences.md).")
    try:
        found = Audience.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{where}: {'; '.join(_said(error))}.") from None
    leaves = sum(1 for _ in leaves_of(found.who))
    if leaves > MAX_CONDITIONS:
        raise ConfigError(f"{where}: {leaves} conditions; {MAX_CONDITIONS} are the most.")
    return found


def leaves_of(condition: Any) -> Iterator[Leaf]:
    """The conditions that join no others."""
    match condition:
        case All():
            for part in condition.all:
                yield from leaves_of(part)
        case AnyOf():
            for part in condition.any:
                yield from leaves_of(part)
        case Not():
            yield from leaves_of(condition.not_)
        case _:
            yield condition


def text_of(part: Part) -> str:
    """A part as text that is the same for equal parts."""
    return json.dumps(part.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=True)


def _said(error: ValidationError) -> Iterator[str]:
    """Of each fault its place, as the document writes it, and what is wrong."""
    seen: set[str] = set()
    for fault in error.errors(include_url=False, include_context=False):
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "is not known here"
        place = _place(fault["loc"])
        if place not in seen and len(seen) < SAID_FAULTS:
            seen.add(place)
            yield f"{place or 'document'}: {message[0].lower()}{message[1:]}"


def _place(steps: tuple[int | str, ...]) -> str:
    """Where in a document a fault is; which kind of condition was tried is in no document."""
    place, is_tag_next = "", False
    for step in steps:
        if isinstance(step, int):
            place, is_tag_next = f"{place}[{step}]", place.endswith((".all", ".any"))
        elif (is_tag_next and step in WORDS) or (step in DESTINATIONS and "deliver." in place) or _NO_NAME.search(step):
            is_tag_next = False
        else:
            place, is_tag_next = f"{place}.{step}" if place else step, step in ("who", "not")
    return place


def _depth(value: Any) -> int:
    """How deep values stand in each other, without recursion: a document may be anybody's."""
    level, deepest = [value], 0
    while level and deepest <= 4 * MAX_DEPTH:
        deepest += 1
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ())
        ]
    return deepest

"""Requests and responses of the API. Source: "Neo4j Integration Guide" (shapes of recommend and track)."""

import unicodedata
from datetime import date, datetime
from typing import Annotated, Any, Literal, Self

from fastapi import Path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from c360_pipeline.core.features.recommend import Recommendation
from c360_pipeline.reads.audiences import AudienceSummary


def _normal(text: str) -> str:
    """As events are: what looks the same is the same."""
    return unicodedata.normalize("NFC", text)


Id = Annotated[str, Path(min_length=1, max_length=1_024), AfterValidator(_normal)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1_024, pattern=r"\S"), AfterValidator(_normal)]
MOST_EVENTS = 500
"""Of one batch."""


SOMEBODY: dict[str, Any] = {
    "anyOf": [
        {"required": ["user_id"], "properties": {"user_id": {"type": "string"}}},
        {"required": ["anonymous_id"], "properties": {"anonymous_id": {"type": "string"}}},
    ]
}
SOMEBODY_AND_A_TIME: dict[str, Any] = {**SOMEBODY, "dependentRequired": {"event_id": ["ts"]}}
"""What the validators of an interaction ask for, as clients made from the OpenAPI document are told."""


class RecommendContext(BaseModel):
    """Where the recommendations are to be shown; names that mean nothing here are passed over."""

    model_config = ConfigDict(extra="ignore")

    category: Text | None = Field(None, description="products of this category only")
    exclude: list[Text] = Field([], max_length=1_000, description="products that are not wanted")
    most_of_category: int | None = Field(None, ge=1, le=100, description="how many of one category at most")


class RecommendRequest(BaseModel):
    """For whom, and how many."""

    model_config = ConfigDict(
        json_schema_extra={
            **SOMEBODY,
            "examples": [{"tenant_id": "acme", "user_id": "john.smith@email.com", "context": {}, "top_k": 5}],
        }
    )

    tenant_id: Text | None = Field(None, description="the key's; another one's is not there")
    user_id: Text | None = Field(None, description="for whom; none before a login")
    anonymous_id: Text | None = Field(None, description="browser or device; it or `user_id` is needed")
    context: RecommendContext = RecommendContext()
    top_k: int = Field(5, ge=1, le=100)

    @model_validator(mode="after")
    def _is_for_somebody(self) -> Self:
        if self.user_id is None and self.anonymous_id is None:
            raise ValueError("user_id or anonymous_id is needed: for whom")
        return self


class Recommendations(BaseModel):
    """Best first."""

    recommendations: list[Recommendation]


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class Interaction(BaseModel):
    """What a user did with a product.

    With an `event_id` and the `ts` of its own an event can be sent again: it counts once.
    """

    model_config = ConfigDict(json_schema_extra=SOMEBODY_AND_A_TIME)

    user_id: Text | None = Field(None, description="who acted; none before a login")
    anonymous_id: Text | None = Field(None, description="browser or device; it or `user_id` is needed")
    product_id: Text
    interaction_type: Annotated[Literal["VIEWED", "PURCHASED"], BeforeValidator(_upper)]
    session_id: Text | None = Field(
        None, description="of the shop; where it is left out, one a day and user, or by gaps where there is a visitor"
    )
    event_id: Text | None = Field(None, description="made here where it is left out; needs `ts`")
    ts: datetime | None = Field(None, description="with an offset; now where it is left out")
    attrs: dict[Text, str] = Field({}, max_length=64)

    @model_validator(mode="after")
    def _is_somebodys(self) -> Self:
        if self.user_id is None and self.anonymous_id is None:
            raise ValueError("user_id or anonymous_id is needed: who acted")
        return self

    @model_validator(mode="after")
    def _is_the_same_when_sent_again(self) -> Self:
        if self.event_id is not None and self.ts is None:
            raise ValueError("ts is needed beside event_id: an event that is sent again must be the same")
        return self


class TrackRequest(Interaction):
    """One interaction of a tenant."""

    model_config = ConfigDict(
        json_schema_extra={
            **SOMEBODY_AND_A_TIME,
            "examples": [
                {
                    "tenant_id": "acme",
                    "user_id": "john.smith@email.com",
                    "product_id": "sku-0017",
                    "interaction_type": "VIEWED",
                }
            ],
        }
    )

    tenant_id: Text | None = Field(None, description="the key's; another one's is not there")


class TrackBatchRequest(BaseModel):
    """Up to 500 interactions of a tenant."""

    tenant_id: Text | None = Field(None, description="the key's; another one's is not there")
    interactions: list[Interaction] = Field(min_length=1, max_length=MOST_EVENTS)


class Tracked(BaseModel):
    """What became of interactions: they are in S3 when this is answered."""

    event_ids: list[str] = Field(description="of those that are stored")
    stored: str | None = Field(description="the file that landing takes up; null where nothing was stored")
    graph: Literal["updated", "pending", "suppressed"] = Field(
        description="pending: the graph shows them when they have landed; suppressed: none of them was stored"
    )
    suppressed: int = Field(0, description="events of people who asked to be forgotten: they are stored nowhere")


class TrendingProduct(BaseModel):
    """People who viewed and bought a product within the window; the score counts a buyer five times."""

    product_id: str
    product_name: str | None
    category: str | None
    viewers: int
    buyers: int
    score: int


class Trending(BaseModel):
    """Best first; the window ends with the tenant's newest event."""

    as_of: datetime | None
    time_window_hours: int
    products: list[TrendingProduct]


class SimilarProduct(BaseModel):
    """A product like another: `same_customers` by who touched both, `viewed_together` by sessions."""

    product_id: str
    product_name: str | None
    category: str | None
    kind: Literal["same_customers", "viewed_together"]
    similarity: float
    shared: int
    rank: int


class SimilarProducts(BaseModel):
    """By kind, the most similar first."""

    product_id: str
    similar: list[SimilarProduct]


class Rows(BaseModel):
    """Rows of a query."""

    rows: list[dict[str, Any]]


class Journey(BaseModel):
    """The events of a journey, by time."""

    journey_id: str
    events: list[dict[str, Any]]


class Explanation(BaseModel):
    """The shortest chain of events and keys that links two events; empty when nothing does."""

    chain: list[dict[str, Any]]


class Anomaly(BaseModel):
    """A session that is unlike the past of its user and of the community, with its oddest step."""

    session_id: str
    user_id: str
    started_at: datetime
    steps: int
    surprise: float = Field(description="mean of -log2 of the probabilities of the steps, in bits")
    usual_surprise: float
    deviations: float = Field(description="standard deviations above the usual")
    from_action: str
    to_action: str
    probability: float = Field(description="of the oddest step")
    path: str


class SurprisingSession(BaseModel):
    """A session that is unlike the past of all customers, as it happens."""

    session_id: str
    user_id: str | None = Field(description="of a session of several the first; null of a visitor")
    started_at: datetime
    last_seen: datetime
    surprise: float = Field(description="mean of -log2 of the probabilities of the steps, in bits")
    deviations: float = Field(description="standard deviations above the usual")
    oddest_step: str


class DropOff(BaseModel):
    """How many sessions of the last week went on from a step of a funnel, against the four weeks before."""

    funnel: str
    step: int
    action: str
    next_action: str | None
    sessions: int
    continued: int
    drop_off_rate: float
    previous_rate: float | None
    change: float | None
    deviations: float | None
    as_of: datetime


class BeforeTickets(BaseModel):
    """A path that users take in the half hour before a ticket more often than elsewhere."""

    path: str
    tickets_with_path: int
    tickets: int
    share_before_tickets: float
    sessions_with_path: int
    sessions: int
    share_elsewhere: float
    lift: float = Field(description="share before tickets by share elsewhere")
    lift_at_least: float | None = Field(description="of which one may be 97.5 % sure")


class AccountAtRisk(BaseModel):
    """What an account is worth, and whether it will leave, with the reasons."""

    account_id: str
    email: str | None
    plan: str | None
    months: int | None
    monthly_value: float | None
    value_to_date: float | None
    churn_risk: float
    risk_level: str
    value_in_a_year: float | None
    why: str | None


class CustomerLeaving(BaseModel):
    """How likely a customer who was seen in 84 days is not to be seen in the next 28, and why."""

    user_id: str
    last_seen: date
    days_silent: int
    days_active: int
    chance_to_leave: float
    level: str
    made_by: str = Field(description="model, or rule: too few left to learn from, and the chance is a score")
    why: str
    as_of: datetime


class CustomerValue(BaseModel):
    """What a customer bought and paid, and what may be expected of them in a year."""

    user_id: str
    first_bought: date
    last_bought: date
    days_since_purchase: int
    purchases: int = Field(description="days on which the customer bought")
    orders: int
    revenue: float | None
    mean_paid: float | None
    currency: str | None
    recency_class: int
    frequency_class: int
    monetary_class: int | None
    chance_active: float | None
    purchases_in_a_year: float | None
    value_in_a_year: float | None
    as_of: datetime


class RecommendationHits(BaseModel):
    """What was viewed and bought within a day of being recommended."""

    day: date
    version: str
    source: str
    customers: int
    products: int
    clicked: int
    bought: int
    customers_with_hit: int
    hit_rate: float
    is_complete: bool


class ModelMeasure(BaseModel):
    """How well a model foresaw the newest past, beside the rule that needs none."""

    model: str
    measure: str
    value: float | None
    baseline: float | None
    cases: int
    is_used: bool


class AuditEntry(BaseModel):
    """What somebody did."""

    audit_id: int = Field(description="number, in the order of writing")
    at: datetime
    actor: str = Field(description="a key by its number and note, or the command line with the user of the machine")
    role: str = Field(description="of the key; empty on the command line")
    action: str
    subject_hash: str | None = Field(description="stands for the person that it is about")
    what: str = Field(description="what else it is about, such as the name of an audience")


class AuditEntries(BaseModel):
    """The newest first."""

    entries: list[AuditEntry]
    next: int | None = Field(description="for `before`, where there may be more")


class _Insights(BaseModel):
    changed_at: datetime | None = Field(description="when the table changed last; null where it was never made")
    total: int = Field(description="how many there are")
    none: str | None = Field(description="where there are none, what that means")


class Anomalies(_Insights):
    """The oddest sessions first."""

    rows: list[Anomaly]


class Surprising(_Insights):
    """The newest sessions first; `changed_at` is when what is usual was learned."""

    rows: list[SurprisingSession]


class DropOffs(_Insights):
    """By funnel and step."""

    rows: list[DropOff]


class TicketPaths(_Insights):
    """The paths first that are most frequent before tickets, compared with elsewhere."""

    rows: list[BeforeTickets]


class Churn(_Insights):
    """The accounts first that are likeliest to leave."""

    rows: list[AccountAtRisk]


class Leaving(_Insights):
    """The customers first that are likeliest to leave."""

    rows: list[CustomerLeaving]


class Values(_Insights):
    """The customers first that may be expected to pay most in a year."""

    rows: list[CustomerValue]


class Recommended(_Insights):
    """The newest day first."""

    rows: list[RecommendationHits]


class Models(_Insights):
    """By model and measure."""

    rows: list[ModelMeasure]


class AudienceList(BaseModel):
    """The tenant's audiences, by name."""

    audiences: list[AudienceSummary]


class AudienceMember(BaseModel):
    """A member, and since when."""

    user_id: str
    entered_at: datetime


class AudienceMembers(BaseModel):
    """Members by user id; `next` continues after the last of them."""

    audience: str
    total: int
    members: list[AudienceMember]
    next: str | None = Field(description="give it as `after` for the members that follow; null where none do")


class AudienceDocument(BaseModel):
    """Who is in an audience, as a document says (docs/audiences.md)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{
        "title": "Buyers who went silent",
        "who": {"all": [{"did": "purchase", "at_least": 2}, {"did": "*", "last_before_days": 30}]},
    }]})  # fmt: skip
    title: str = Field("", max_length=200)
    description: str = Field("", max_length=2_000)
    who: dict[str, Any]
    deliver: dict[str, Any] = Field(default_factory=dict)
    note: str = Field("", max_length=1_024, description="why, for those who look at it later")


class AudienceSize(BaseModel):
    """How many would be in an audience now, of how many customers, and how many fulfil each condition."""

    customers: int
    members: int
    each: dict[str, int]


class AudienceApplied(BaseModel):
    """The version of the document that is in force, and whether it was not before."""

    audience: str
    version: int
    changed: bool


class Health(BaseModel):
    """Whether requests can be served, and by service whether it answers."""

    status: Literal["ready", "not ready"]
    services: dict[str, bool]


FIELDS = frozenset(
    name for model in list(vars().values()) if isinstance(model, type) and issubclass(model, BaseModel)
    for name in model.model_fields
)  # fmt: skip
"""Names of fields of ours."""

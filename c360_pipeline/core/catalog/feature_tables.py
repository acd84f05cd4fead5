"""Tables of features, each made of the archive and the graph for one tenant after the other."""

from c360_pipeline.core.catalog.columns import (
    AS_OF,
    BOOL,
    CATEGORY,
    DATE,
    INT,
    PATH,
    PRODUCT_ID,
    RANK,
    REAL,
    TENANT_ID,
    TEXT,
    USER_ID,
    UTC_MICROS,
    Column,
    of_events,
)
from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATION_HITS
from c360_pipeline.core.catalog.table import Table

BOUGHT = of_events("user_id", "action", "ts")

USER_COMMUNITIES = Table(
    "features/user_communities",
    ("tenant_id", "user_id"),
    (
        TENANT_ID,
        USER_ID,
        Column(
            "community",
            INT,
            "number within its tenant, 0 first; communities are numbered by their first user",
            origin=of_events("user_id", "item_id", "action"),
        ),
        Column("community_size", INT, "users in the community"),
    ),
    "Louvain communities of users who touch the same products; numbered by their first member.",
)

PRODUCT_SIMILARITIES = Table(
    "features/product_similarities",
    ("tenant_id", "kind", "product_id", "similar_product_id"),
    (
        TENANT_ID,
        Column("kind", TEXT, "same_customers, viewed_together or leads_to"),
        PRODUCT_ID,
        Column("similar_product_id", TEXT, "the product that is like it", origin=of_events("item_id")),
        RANK,
        Column(
            "similarity",
            REAL,
            "Jaccard: shared by all that either has, 0 to 1; of leads_to the learned weight, above 0",
            origin=of_events("user_id", "session_id", "item_id"),
        ),
        Column("shared", INT, "customers or sessions that both have"),
    ),
    "Products with the same customers, products viewed in the same sessions, and products "
    "that one leads to, by weights that are learned from what all customers did.",
)

RECOMMENDATION_SETTINGS = Table(
    "features/recommendation_settings",
    ("tenant_id",),
    (
        TENANT_ID,
        Column("half_life", REAL, "products of a customer after which a further one counts half"),
        Column("regularisation", REAL, "how much evidence the weights between products need"),
        Column("validated", INT, "customers whose last new purchase was held out to choose these; 0: nothing chosen"),
        Column("recall", REAL, "share of these whose purchase was among ten recommended, 0 to 1"),
        Column("ndcg", REAL, "the same where a better place counts more, 0 to 1"),
        Column("popular_recall", REAL, "share of these whose purchase was among the ten that most bought, 0 to 1"),
    ),
    "With what each tenant's recommendations are made, and how many of the last purchases they find.",
)

PRODUCT_CANDIDATES = Table(
    "features/product_candidates",
    ("tenant_id", "user_id", "product_id"),
    (
        TENANT_ID,
        USER_ID,
        PRODUCT_ID,
        RANK,
        Column(
            "score",
            INT,
            "how strongly it is recommended: similar users, twice, and strength",
            origin=of_events("user_id", "action", "item_id", "ts"),
        ),
        Column(
            "similar_users",
            INT,
            "others who bought one of the user's products, and this",
            origin=of_events("user_id", "item_id"),
        ),
        Column(
            "strength",
            INT,
            "how often similar users bought it, once for each product shared with the user",
            origin=of_events("user_id", "item_id"),
        ),
    ),
    "What customers with the same purchases bought besides, the best 20 for each user.",
)

TRENDING_PRODUCTS = Table(
    "features/trending_products",
    ("tenant_id", "window_hours", "product_id"),
    (
        TENANT_ID,
        Column("window_hours", INT, "24, 168 or 720"),
        PRODUCT_ID,
        CATEGORY,
        AS_OF,
        Column("rank", INT, "1 is best, by score"),
        Column("rank_in_category", INT, "the same among the products of its category"),
        Column(
            "viewers", INT, "users who viewed it in the window", origin=of_events("user_id", "action", "item_id", "ts")
        ),
        Column(
            "buyers", INT, "users who bought it in the window", origin=of_events("user_id", "action", "item_id", "ts")
        ),
        Column(
            "score",
            INT,
            "viewers, and buyers with their weight",
            origin=of_events("user_id", "action", "item_id", "ts"),
        ),
        Column("previous_score", INT, "score of the window before"),
        Column("growth", REAL, "score by that of the window before, one at least"),
    ),
    "Products that most people viewed and bought in the last day, week and month, against the same time before.",
)

PATH_ANOMALIES = Table(
    "features/path_anomalies",
    ("tenant_id", "session_id", "user_id"),
    (
        TENANT_ID,
        Column("session_id", TEXT, "the producer's session", origin=of_events("session_id")),
        USER_ID,
        Column("started_at", UTC_MICROS, "of the session's first event (UTC)", origin=of_events("ts")),
        Column("steps", INT, "steps of the session"),
        Column(
            "surprise",
            REAL,
            "mean of -log2 of the probabilities of the steps, in bits",
            origin=of_events("user_id", "action", "ts"),
        ),
        Column("usual_surprise", REAL, "mean of the sessions of the past, in bits"),
        Column("deviations", REAL, "standard deviations above the usual surprise"),
        Column("from_action", TEXT, "where the oddest step begins", origin=of_events("action")),
        Column("to_action", TEXT, "where the oddest step ends", origin=of_events("action")),
        Column(
            "probability",
            REAL,
            "of the oddest step, by the past of the user and the community",
            origin=of_events("user_id", "action", "ts"),
        ),
        PATH,
    ),
    "Sessions of the last week whose path is unlike the user's own and the community's past, the oddest step named.",
)

USUAL_STEPS = Table(
    "features/usual_steps",
    ("tenant_id", "from_action", "to_action"),
    (
        TENANT_ID,
        Column("from_action", TEXT, "where the step begins", origin=of_events("action")),
        Column("to_action", TEXT, "where it ends", origin=of_events("action")),
        Column("steps", INT, "how often it was taken in the past", origin=of_events("session_id", "action", "ts")),
        Column("starts", INT, "steps from there, wherever to"),
        Column("actions", INT, "different actions of the tenant that a step leads to"),
        Column("usual_surprise", REAL, "of the tenant's sessions of the past, mean, in bits"),
        Column("spread", REAL, "standard deviation of these, for a session of one step, in bits"),
    ),
    "The steps of sessions of more than a week ago, by which a session that goes on is told to be unlike the past.",
)

DROP_OFFS = Table(
    "features/drop_offs",
    ("tenant_id", "funnel", "step"),
    (
        TENANT_ID,
        Column("funnel", TEXT, "name of the funnel"),
        Column("step", INT, "number in the funnel, 1 first"),
        Column("action", TEXT, "step that sessions reached"),
        Column("next_action", TEXT, "the step that should follow", origin=of_events("action")),
        Column("sessions", INT, "sessions that reached the step", origin=of_events("session_id")),
        Column("continued", INT, "sessions that reached the next step, too"),
        Column("drop_off_rate", REAL, "share of sessions that did not go on, 0 to 1"),
        Column("previous_rate", REAL, "the same in the four weeks before"),
        Column("change", REAL, "`drop_off_rate` less `previous_rate`"),
        Column("deviations", REAL, "the change in standard errors; from 3 on it is hardly chance"),
        AS_OF,
    ),
    "How many sessions of the last week went on from each step of a funnel, against the four weeks before.",
)

SUPPORT_INSIGHTS = Table(
    "features/support_insights",
    ("tenant_id", "path"),
    (
        TENANT_ID,
        PATH,
        Column("tickets_with_path", INT, "of these, those that the path precedes"),
        Column("tickets", INT, "tickets and calls for support with events in the 30 minutes before"),
        Column("share_before_tickets", REAL, "share of tickets that the path precedes, 0 to 1"),
        Column("sessions_with_path", INT, "of these, those that hold the path"),
        Column("sessions", INT, "sessions that no ticket followed", origin=of_events("session_id")),
        Column("share_elsewhere", REAL, "share of other sessions that hold the path, 0 to 1"),
        Column("lift", REAL, "share before tickets by share elsewhere"),
        Column("lift_at_least", REAL, "what the lift is at least, of which one may be 97.5 % sure; above 1"),
    ),
    "Paths that users take in the 30 minutes before a ticket more often than in sessions that no ticket follows.",
)

ACCOUNT_VALUES = Table(
    "features/account_values",
    ("tenant_id", "account_id"),
    (
        Column("tenant_id", TEXT, "whose customers these are"),
        Column("account_id", TEXT, "the silo's key of the account, as text"),
        Column("email", TEXT, "of the account"),
        Column("plan", TEXT, "of the active subscription"),
        Column("months", INT, "since the account was made"),
        Column("monthly_value", REAL, "fee and a third of the purchases of 90 days, a month"),
        Column("value_to_date", REAL, "fees since the account was made, and all purchases"),
        Column("churn_risk", REAL, "how likely the account leaves, 0 to 1"),
        Column("risk_level", TEXT, "low, medium, high, or left"),
        Column("value_in_a_year", REAL, "monthly value times the chance to be still there, over twelve months"),
        Column("why", TEXT, "what the risk is made of"),
    ),
    "What each account has brought and may bring in a year, and how likely it is to leave, with the reasons.",
)

CUSTOMER_VALUES = Table(
    "features/customer_values",
    ("tenant_id", "user_id"),
    (
        TENANT_ID,
        USER_ID,
        Column("first_bought", DATE, "UTC day of the first purchase", origin=BOUGHT),
        Column("last_bought", DATE, "UTC day of the last purchase", origin=BOUGHT),
        Column("days_since_purchase", INT, "days from the last purchase to the tenant's newest event"),
        Column("purchases", INT, "days on which the customer bought", origin=BOUGHT),
        Column("orders", INT, "events by which they bought", origin=BOUGHT),
        Column(
            "revenue",
            REAL,
            "paid for these, prices of the catalogue where events say none; null: none known",
            origin=of_events("user_id", "action", "items", "item_id"),
        ),
        Column("mean_paid", REAL, "paid on a day with a purchase"),
        Column("currency", TEXT, "of the sums: that of most purchases; purchases in others are in no sum"),
        Column("recency_class", INT, "5: among the fifth of customers who bought last, 1: longest ago"),
        Column("frequency_class", INT, "5: among the fifth who bought most often"),
        Column("monetary_class", INT, "5: among the fifth who paid most"),
        Column("chance_active", REAL, "how likely the customer still buys, 0 to 1; null where there is no model"),
        Column("purchases_in_a_year", REAL, "days on which they may be expected to buy; null where there is no model"),
        Column("value_in_a_year", REAL, "what they may be expected to pay for these; null where there is no model"),
        AS_OF,
    ),
    "What each customer bought and paid, how recently and how often, and what may be expected of them in a year.",
)

CUSTOMER_CHURN = Table(
    "features/customer_churn",
    ("tenant_id", "user_id"),
    (
        TENANT_ID,
        USER_ID,
        Column("last_seen", DATE, "UTC day of the last event", origin=of_events("user_id", "ts")),
        Column("days_silent", INT, "days from it to the tenant's newest event"),
        Column("days_active", INT, "days with events", origin=of_events("user_id", "ts")),
        Column("chance_to_leave", REAL, "how likely no event follows in 28 days, 0 to 1; by the rule: a score"),
        Column("level", TEXT, "low, medium (0.3 at least) or high (0.6)"),
        Column("made_by", TEXT, "model, or rule where too few have left to learn from, or a model was no better"),
        Column("why", TEXT, "what moves the odds most; by the rule: what it looks at"),
        AS_OF,
    ),
    "How likely each customer who was seen in 84 days is not to be seen in the next 28, with the reasons.",
)

CUSTOMER_MODELS = Table(
    "features/customer_models",
    ("tenant_id", "model", "measure"),
    (
        TENANT_ID,
        Column("model", TEXT, "churn, or purchases (of which values in a year are made)"),
        Column("measure", TEXT, "what was measured on a time that the model had not seen"),
        Column("value", REAL, "of the model"),
        Column("baseline", REAL, "of the rule, or of each customer's own rate of buying"),
        Column("cases", INT, "customers it was measured on"),
        Column("is_used", BOOL, "whether the model was better, and tells chances and values"),
    ),
    "How well what is said of customers was foreseen, on the newest past, beside what needs no model.",
)


def feature_of(table: Table) -> str:
    """The name of a table without its folder: its asset is called so, and the feature in `feature_purposes`."""
    return table.name.removeprefix("features/")


FEATURES = (
    USER_COMMUNITIES, PRODUCT_SIMILARITIES, RECOMMENDATION_SETTINGS, PRODUCT_CANDIDATES, TRENDING_PRODUCTS,
    PATH_ANOMALIES, USUAL_STEPS, DROP_OFFS, SUPPORT_INSIGHTS, ACCOUNT_VALUES,
    CUSTOMER_VALUES, CUSTOMER_CHURN, CUSTOMER_MODELS, RECOMMENDATION_HITS,
)  # fmt: skip

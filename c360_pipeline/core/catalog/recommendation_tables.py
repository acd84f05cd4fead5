"""Tables of recommendations: what was given to whom, and what came of it."""

from c360_pipeline.core.catalog.columns import BOOL, DATE, INT, REAL, TENANT_ID, TEXT, TEXT_LIST, UTC_MICROS, Column
from c360_pipeline.core.catalog.columns import of_events as of
from c360_pipeline.core.catalog.table import Table

VERSION = Column("version", TEXT, "of what recommends: release, half-life and regularisation")

RECOMMENDATIONS_GIVEN = Table(
    "recommendations_given",
    ("tenant_id", "given_at", "given_id"),
    (
        TENANT_ID,
        Column("given_at", UTC_MICROS, "when the API answered (UTC)"),
        Column("given_id", TEXT, "of the answer, made up"),
        Column("user_id", TEXT, "for whom; of a visitor who had logged in the user, else null"),
        Column("anonymous_id", TEXT, "for which visitor; null where a user is named"),
        VERSION,
        Column("products", TEXT_LIST, "ids of products, the best first"),
        Column("sources", TEXT_LIST, "of each product the step of the ladder that it comes from"),
    ),
    "What the API recommended to whom in the last 30 days; not what those who refused the purpose were shown.",
)

RECOMMENDATION_HITS = Table(
    "features/recommendation_hits",
    ("tenant_id", "day", "version", "source"),
    (
        TENANT_ID,
        Column("day", DATE, "UTC day on which they were given"),
        VERSION,
        Column("source", TEXT, "step of the ladder that the products come from; `all` for all of them together"),
        Column("customers", INT, "users and visitors to whom products were recommended"),
        Column("products", INT, "products recommended, each once for each of these"),
        Column("clicked", INT, "of these, viewed within a day after", origin=of("item_id", "action", "ts")),
        Column("bought", INT, "of these, bought within a day after", origin=of("item_id", "action", "ts")),
        Column("customers_with_hit", INT, "of the customers, those who viewed or bought one of the products"),
        Column("hit_rate", REAL, "share of the customers with a hit, 0 to 1"),
        Column("is_complete", BOOL, "whether a day has passed since the last was given, by the tenant's newest event"),
    ),
    "What was clicked and bought within a day of being recommended, by day, version and source; older days stay.",
)

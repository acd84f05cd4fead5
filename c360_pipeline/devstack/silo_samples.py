"""The sample source databases: schemas from data/silos, rows from here, the same on every machine."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql
from pydantic import SecretStr

from c360_pipeline.core.silos.control_rows import SourceDatabase
from c360_pipeline.core.silos.plan import make_plan
from c360_pipeline.devstack.movielens import Film, Viewer, read_films, read_viewers
from c360_pipeline.devstack.people import COUNTRIES, SAMPLE_DATE, SEED, SILO_TENANT, Person, people, products
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import c360_home, keep_source_secret, project_path
from c360_pipeline.stages.silos.grants import create_role_statement, grant_statements
from c360_pipeline.stages.silos.run import as_if_readable, found_tables
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.databases import database_exists, ensure_database
from c360_pipeline.stores.postgres.silo import Silo

MARK = "sample database of c360_pipeline"
READ_MARK = """
    SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()
"""
READ_FOREIGN = """
    SELECT db_name FROM source_databases WHERE db_name <> ALL(%s) OR password_ref <> ALL(%s) ORDER BY db_name
"""
FIND_ROWS = "SELECT to_regclass('source_databases')::text"
MOVE_ROWS = """
    UPDATE source_databases SET port = %s
    WHERE db_name = ANY(%s) AND host = %s AND password_ref = ANY(%s) AND port <> %s
"""
FIND_ROLE = "SELECT 1 FROM pg_roles WHERE rolname = %s"
MOVE_SEQUENCES = (
    "SELECT setval(pg_get_serial_sequence('source_databases', 'database_id'), max(database_id)) FROM source_databases",
    "SELECT setval(pg_get_serial_sequence('source_tables', 'table_id'), max(table_id)) FROM source_tables",
)
SAMPLE_DATABASES = ("profiles_db", "streaming_db", "support_db")
READER = "c360_sample_reader"
"""The login that reads the samples: it may select what the control rows do not exclude, and nothing else."""
SAMPLE_SECRET = "C360_SOURCE_SAMPLE_PASSWORD"  # noqa: S105 - where it is, not what it is
SAMPLE_REFS = [f"env:{SAMPLE_SECRET}", "env:ETL_DB_PASSWORD"]
"""Of sample rows; the second of those that an earlier release made."""
CONTROL_TABLES = ("source_databases", "relationship_mappings")
Rows = Iterable[Sequence[Any]]

PLANS = ((1, "Basic", "7.99", 1), (2, "Standard", "12.99", 2), (3, "Premium", "17.99", 4), (4, "Family", "22.99", 6))
GENRES = ("Drama", "Comedy", "Action", "Documentary", "Science Fiction", "Thriller", "Animation", "Romance")
TITLE_STARTS = (
    "The Last",
    "A Quiet",
    "Beyond the",
    "Return to",
    "Midnight",
    "Paper",
    "Golden",
    "Hidden",
    "Seven",
    "Lost",
)
TITLE_ENDS = ("Harbour", "Winter", "Signal", "Garden", "Kingdom", "Letters", "River", "Orchard")
TAGS = ("Technical", "Playback", "Billing", "Account", "Content", "Fraud")
SUBJECTS = {
    "Technical": "App closes after the update", "Playback": "Picture stops every few minutes",
    "Billing": "Charged twice this month", "Account": "Can't change my address",
    "Content": "An episode is missing", "Fraud": "A device that is not mine",
}  # fmt: skip


def seed(connection: dict[str, Any], control: ControlDb, source: str, report: Callable[[str], None]) -> None:
    """Create and fill the sample databases and their control rows; can be done again, with the same result.

    Args:
        connection: host, port, user, password of a login that may create databases, and dbname of the control database.
        control: the control database.
        source: `sample` or `movielens`.
        report: called with each database that is filled.

    Raises:
        ConfigError: a database of that name exists that `seed` did not make, the control database reads databases that
            are none of ours, or there is no such source.
    """
    if source not in SOURCES:
        raise ConfigError(f"--source {source!r}: {' or '.join(SOURCES)} is right.")
    control.ensure()
    _refuse_foreign_rows(connection)
    tables = SOURCES[source]()
    for database, filling in tables.items():
        silo = {**connection, "dbname": database}
        _claim_database(silo)
        schema = (
            project_path("data") / "silos" / (f"{database}.sql" if source == "sample" else f"{source}_{database}.sql")
        )
        counts = _fill(silo, schema.read_text(encoding="utf-8"), filling)
        report(f"{database}: " + ", ".join(f"{count:,} {table}" for table, count in counts.items()))
    _fill_control(connection, source)
    _grant(connection, control)
    report(f"{connection['dbname']}: control rows")


def follow_server(connection: dict[str, Any]) -> int:
    """Let the control rows of sample databases say where their server is now; returns how many did not.

    Args:
        connection: as `seed` takes it; the control database may be missing yet.
    """
    if not database_exists(connection):
        return 0
    with psycopg.connect(**connection) as control:
        if control.execute(FIND_ROWS).fetchone() == (None,):
            return 0
        port, host = connection["port"], connection["host"]
        moved = control.execute(MOVE_ROWS, (port, list(SAMPLE_DATABASES), host, SAMPLE_REFS, port)).rowcount
    if moved:
        keep_source_secret(c360_home(), SAMPLE_SECRET, str(host), int(port))
    return moved


def _claim_database(connection: dict[str, Any]) -> None:
    """Make a sample database and mark it as ours; one that is there must bear the mark."""
    if ensure_database(connection):
        with psycopg.connect(**connection) as silo:
            name = sql.Identifier(str(connection["dbname"]))
            silo.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, MARK))
        return
    with psycopg.connect(**connection) as silo:
        found = silo.execute(READ_MARK).fetchone()
    if found != (MARK,):
        raise ConfigError(
            f"The database {connection['dbname']} exists and is not a sample of ours: `c360 seed` would overwrite it. "
            "Seed another server, or remove it first."
        )


def _fill(connection: dict[str, Any], schema: str, tables: dict[str, Rows]) -> dict[str, int]:
    counts = {}
    with psycopg.connect(**connection) as silo, silo.cursor() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        cursor.execute(schema.encode())
        for table, rows in tables.items():
            with cursor.copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(table))) as copy:
                counts[table] = 0
                for row in rows:
                    copy.write_row(row)
                    counts[table] += 1
        cursor.execute("ANALYZE")
    return counts


def _refuse_foreign_rows(connection: dict[str, Any]) -> None:
    """The control rows are rewritten: those of somebody's real databases must not be lost."""
    with psycopg.connect(**connection) as control:
        foreign = [row[0] for row in control.execute(READ_FOREIGN, (list(SAMPLE_DATABASES), SAMPLE_REFS))]
    if foreign:
        raise ConfigError(
            f"The control database {connection['dbname']} reads {', '.join(foreign)}, which are no samples of ours: "
            "`c360 seed` would remove these rows. Name another control database in ETL_DB_NAME."
        )


def _fill_control(connection: dict[str, Any], source: str) -> None:
    name = "control_rows.sql" if source == "sample" else f"{source}_control_rows.sql"
    script = (project_path("data") / "silos" / name).read_text(encoding="utf-8")
    values = {
        ":tenant": SILO_TENANT if source == "sample" else source,
        ":host": str(connection["host"]),
        ":port": int(connection["port"]),
        ":user": READER,
    }
    with psycopg.connect(**connection) as control:
        for table in CONTROL_TABLES:
            control.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
        for placeholder, value in values.items():
            script = script.replace(placeholder, sql.Literal(value).as_string(control))
        control.execute(script.encode())
        # The rows have ids of their own: whoever adds a row next must not get one of these.
        for statement in MOVE_SEQUENCES:
            control.execute(statement)


def _grant(connection: dict[str, Any], control: ControlDb) -> None:
    """Make the login that reads the samples, with a password of its own, and grant what it needs."""
    owner = SecretStr(str(connection["password"]))
    own = keep_source_secret(c360_home(), SAMPLE_SECRET, str(connection["host"]), int(connection["port"]))

    def as_owner(database: SourceDatabase) -> Silo:
        return Silo(replace(database, user=str(connection["user"])), owner)

    with psycopg.connect(**connection) as server:
        if not server.execute(FIND_ROLE, (READER,)).fetchone():
            server.execute(create_role_statement(READER))
        server.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(READER), sql.Literal(own.get_secret_value()))
        )
    rows = control.read()
    extracts = make_plan(rows, as_if_readable(found_tables(rows, as_owner))).extracts
    for database in rows.databases:
        of_database = [extract for extract in extracts if extract.table.database_id == database.database_id]
        with psycopg.connect(**{**connection, "dbname": database.db_name}) as silo:
            for statement in grant_statements(database.db_name, READER, of_database):
                silo.execute(statement)


def sample_tables() -> dict[str, dict[str, Rows]]:
    """The rows of the sample, by database and table."""
    persons = people(SILO_TENANT)
    rng = random.Random(SEED)  # noqa: S311 - sample data
    tickets = list(_tickets(rng, persons))
    return {
        "profiles_db": {
            "accounts": _accounts(persons),
            "plans": PLANS,
            "subscriptions": list(_subscriptions(rng, persons)),
            "payment_methods": list(_payment_methods(rng, persons)),
        },
        "streaming_db": {"media": list(_media(rng)), "play_events": list(_plays(rng, persons))},
        "support_db": {
            "tickets": [ticket for ticket, _ in tickets],
            "tags": [(number, tag) for number, tag in enumerate(TAGS, 1)],
            "ticket_tags": [(ticket[0], TAGS.index(tag) + 1) for ticket, tags in tickets for tag in tags],
        },
        "commerce_db": _commerce(rng, persons),
    }


def _accounts(persons: list[Person]) -> Rows:
    for p in persons:
        password = "scrypt$" + hashlib.sha256(f"{SEED}/{p.email}".encode()).hexdigest()
        status = "hacked" if p.account_id % 60 == 23 else "active"  # one shares its card and an address
        country = COUNTRIES[p.account_id % len(COUNTRIES)]
        yield p.account_id, p.email, p.full_name, password, f"+49 30 {p.account_id:06d}", country, status, p.created_at


def _subscriptions(rng: random.Random, persons: list[Person]) -> Iterator[Sequence[Any]]:
    for p in persons:
        plan = 3 if p.account_id == 1 else rng.choices((1, 2, 3, 4), (4, 4, 2, 1))[0]
        status = "active" if p.account_id == 1 else rng.choices(("active", "cancelled", "paused"), (8, 2, 1))[0]
        renews = (SAMPLE_DATE + timedelta(days=rng.randint(1, 30))).date() if status == "active" else None
        yield p.account_id, p.account_id, plan, status, p.created_at + timedelta(hours=1), renews


def _payment_methods(rng: random.Random, persons: list[Person]) -> Iterator[Sequence[Any]]:
    for number, p in enumerate(persons, 1):
        # Every 24th account pays with the card of the account before it: what a fraud desk looks for.
        card_of = p.account_id - 1 if p.account_id % 24 == 0 else p.account_id
        fingerprint = hashlib.sha256(f"{SEED}/card/{card_of}".encode()).hexdigest()[:24]
        card_type = ("Visa", "Mastercard", "Amex")[card_of % 3]
        expires = (SAMPLE_DATE + timedelta(days=rng.randint(60, 1400))).date()
        yield number, p.account_id, card_type, f"{(card_of * 7919) % 10000:04d}", fingerprint, expires, True


def _media(rng: random.Random) -> Iterator[Sequence[Any]]:
    for number in range(1, 81):
        title = f"{TITLE_STARTS[number % 10]} {TITLE_ENDS[number // 10 % 8]}"
        released = (SAMPLE_DATE - timedelta(days=rng.randint(100, 9000))).date()
        kind = rng.choice(("movie", "movie", "series"))
        yield number, title, GENRES[number % len(GENRES)], kind, released, rng.randint(22, 170)


def _plays(rng: random.Random, persons: list[Person]) -> Iterator[Sequence[Any]]:
    number = 0
    for p in persons:
        # Some watch every day, some never: at-risk customers must be there to be found.
        viewings = 30 if p.account_id == 1 else rng.choices((0, rng.randint(1, 4), rng.randint(5, 25)), (1, 2, 5))[0]
        for _ in range(viewings):
            span = min(90, (SAMPLE_DATE - p.created_at).days)
            evening = rng.choices((rng.randint(0, 23), rng.randint(18, 22)), (1, 2))[0]
            start = (SAMPLE_DATE - timedelta(days=rng.randint(1, span))).replace(
                hour=evening, minute=rng.randint(0, 59)
            )
            media, device = int(rng.triangular(1, 80, 8)), rng.choice(p.devices)
            address = f"203.0.113.{p.account_id % 200 + 1}"
            for action, minutes in (("play", 0), ("stop", rng.randint(3, 120)))[: rng.choice((1, 2, 2, 2))]:
                number += 1
                at = start + timedelta(minutes=minutes)
                yield number, p.account_id, media, action, at, device, address, minutes * 60


def _tickets(rng: random.Random, persons: list[Person]) -> Iterator[tuple[Sequence[Any], list[str]]]:
    number = 0
    for p in persons:
        for _ in range(3 if p.account_id == 1 else rng.choices((0, 1, 2), (5, 3, 1))[0]):
            number += 1
            tags = rng.sample(TAGS[:2], 2) if p.account_id == 1 else rng.sample(TAGS, rng.randint(1, 2))
            age = timedelta(
                days=rng.randint(1, min(60, (SAMPLE_DATE - p.created_at).days)), minutes=rng.randint(0, 1439)
            )
            opened = SAMPLE_DATE - age
            resolved = opened + timedelta(hours=rng.randint(1, 70)) if rng.random() < 0.7 else None
            status, priority = ("resolved" if resolved else "open"), rng.choice(("low", "normal", "high"))
            body = f"Hello, this is {p.full_name}. {SUBJECTS[tags[0]]}."
            yield (number, p.email, SUBJECTS[tags[0]], body, status, priority, opened, resolved), tags


def _commerce(rng: random.Random, persons: list[Person]) -> dict[str, Rows]:
    catalog = products(SILO_TENANT)
    bought = []
    for number in range(1, 601):
        person, product = rng.choice(persons), rng.choice(catalog)
        at = SAMPLE_DATE - timedelta(minutes=rng.randint(1, 86_400))
        status = rng.choices(("completed", "refunded", "pending"), (9, 1, 1))[0]
        bought.append((number, person.user_id, product.id, f"{product.price:.2f}", status, at))
    return {
        "users": [(p.user_id, p.email, p.created_at) for p in persons],
        "products": [(p.id, p.name, p.category, f"{p.price:.2f}") for p in catalog],
        "transactions": bought,
    }


def movielens_tables() -> dict[str, dict[str, Rows]]:
    """MovieLens' viewers as accounts and its films as media."""
    return {
        "profiles_db": {"accounts": [_viewer_row(v) for v in read_viewers()]},
        "streaming_db": {"media": [_film_row(f) for f in read_films()]},
    }


def _viewer_row(v: Viewer) -> Sequence[Any]:
    return int(v.id), f"viewer-{v.id}@movielens.example", v.age, v.gender, v.occupation, v.zip_code


def _film_row(f: Film) -> Sequence[Any]:
    return int(f.id), f.title, f.genre, "movie", f.release_year


SOURCES: dict[str, Callable[[], dict[str, dict[str, Rows]]]] = {
    "sample": sample_tables,
    "movielens": movielens_tables,
}

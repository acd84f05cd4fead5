"""Destinations of audiences: files in the bucket, a webhook, a table of Postgres."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from urllib.parse import quote

import polars as pl
from pydantic import SecretStr

from c360_pipeline.connections import open_bucket
from c360_pipeline.core.audiences.changes import ENTERED, LEFT
from c360_pipeline.core.audiences.definition import (
    Audience,
    Destination,
    Label,
    ToBucket,
    ToPostgres,
    ToWebhook,
    leaves_of,
)
from c360_pipeline.errors import ConfigError, UnavailableError
from c360_pipeline.settings import Settings, is_named_as_it_is, require_allowed_host, source_secret, strictest_sslmode
from c360_pipeline.stages.audiences.deliver import Deliveries, Sent, Sink, Sinks
from c360_pipeline.stores.activation import Refused, Webhook, leads_inside, message_id, server_of
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.member_table import MemberTable
from c360_pipeline.stores.s3.bucket import Bucket

FOLDER, MEMBERS_FILE, CHANGES_FOLDER = "audiences/", "members", "changes/"
"""Of the bucket, where files of members are."""
MOST_REFUSED = 10
"""Of the first changes: a server that refuses so many, and takes none, wants none."""
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes a text that begins so to be: a formula of whoever chose the user id."""


def folder_of(tenant_id: str, *names: str) -> str:
    """Where the files of a tenant's audiences are; those of one, or of one destination of it, where it is named."""
    return f"{FOLDER}{'/'.join((quote(tenant_id, safe=''), *names))}/"


def write_members(lake: Lake, sinks: Sinks | None, audiences: Sequence[Audience]) -> set[str]:
    """Write the file of all members of each destination in the bucket anew; returns their keys."""
    if sinks is None:
        return set()
    written = set()
    for one in audiences:
        files = {name: said for name, said in one.deliver.items() if isinstance(said, ToBucket)}
        for name, said in files.items():
            Deliveries(lake, sinks).prepare(one, name)
            written.add(f"{folder_of(one.tenant, one.audience, name)}{MEMBERS_FILE}.{said.format}")
    return written


class BucketSink:
    """Files: `members`, replaced by each delivery, and one of `changes` for each batch.

    Args:
        bucket: where.
        folder: of the destination.
        format: csv or parquet.
    """

    def __init__(self, bucket: Bucket, folder: str, format: str) -> None:
        self._bucket = bucket
        self._folder = folder
        self._format = format

    def prepare(self, members: pl.DataFrame) -> None:
        """Write all members."""
        self._put(MEMBERS_FILE, members)

    def send(self, changes: pl.DataFrame) -> Sent:
        """Write a file of changes; its name follows from them, so that it is the same file when it comes again."""
        self._put(f"{CHANGES_FOLDER}{message_id(changes['id'].to_list())}", changes.drop("id"))
        return Sent()

    def _put(self, name: str, rows: pl.DataFrame) -> None:
        content = BytesIO()
        if self._format == "parquet":
            rows.write_parquet(content)
        else:
            safe = rows.with_columns(
                pl.when(pl.any_horizontal(pl.col(name).str.starts_with(sign) for sign in _FORMULAS))
                .then("'" + pl.col(name)).otherwise(pl.col(name)).alias(name)
                for name in rows.columns if rows.schema[name] == pl.String
            )  # fmt: skip
            safe.write_csv(content, datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")
        self._bucket.put(f"{self._folder}{name}.{self._format}", content.getvalue())


class WebhookSink:
    """Requests; a batch that the server does not want is halved until it is clear whom it does not want.

    Args:
        webhook: the server.
        names: of tenant and audience, for the body.
    """

    def __init__(self, webhook: Webhook, names: dict[str, str]) -> None:
        self._webhook = webhook
        self._names = names
        self._has_taken = False

    def prepare(self, members: pl.DataFrame) -> None:
        """Nothing: the server hears of changes only."""

    def send(self, changes: pl.DataFrame) -> Sent:
        """Send changes."""
        refused: dict[str, str] = {}
        parts = [changes]
        while parts:
            part = parts.pop()
            answer = self._webhook.post(message_id(part["id"].to_list()), self._body(part))
            if not isinstance(answer, Refused):
                self._has_taken = True
                refused |= {user: why for user, why in answer.items() if user in {*part["user_id"]}}
            elif len(refused) >= MOST_REFUSED and not self._has_taken:
                raise UnavailableError(
                    f"It {answer.reason} to each of the first {len(refused)} changes: it takes none."
                )
            elif part.height > 1:
                half = part.height // 2
                parts += [part.slice(half), part.head(half)]
            else:
                refused[part["user_id"][0]] = answer.reason
        return Sent(refused)

    def _body(self, changes: pl.DataFrame) -> dict[str, Any]:
        rows = changes.with_columns(pl.col("entered_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
        return {"type": "audience.changed", **self._names, "changes": rows.to_dicts()}


class PostgresSink:
    """Rows of a table.

    Args:
        table: entered.
    """

    def __init__(self, table: MemberTable) -> None:
        self._table = table

    def prepare(self, members: pl.DataFrame) -> None:
        """Nothing: the table changes with its rows."""

    def send(self, changes: pl.DataFrame) -> Sent:
        """Write changes, in one transaction."""
        entered = changes.filter(pl.col("change") == ENTERED).select("user_id", "entered_at").rows()
        self._table.write(entered, changes.filter(pl.col("change") == LEFT)["user_id"].to_list())
        return Sent()


class OpenSink:
    """Opens the destinations of documents, where the installation lets them be.

    Args:
        settings: of the bucket.
        control: with the databases that documents name.
    """

    def __init__(self, settings: Settings, control: ControlDb) -> None:
        self._settings = settings
        self._control = control

    @contextmanager
    def __call__(self, audience: Audience, destination: str) -> Iterator[Sink]:
        """A destination of an audience.

        Raises:
            ConfigError: it may not be sent to, or its secret or database is not there.
            UnavailableError: it does not answer.
        """
        said = audience.deliver[destination]
        if isinstance(said, ToBucket):
            folder = folder_of(audience.tenant, audience.audience, destination)
            yield BucketSink(open_bucket(self._settings), folder, said.format)
        elif isinstance(said, ToWebhook):
            host, port = server_of(said.url)
            may_be_inside = is_named_as_it_is(host, port)
            with Webhook(said.url, self.secret(said), may_be_inside=may_be_inside) as webhook:
                yield WebhookSink(webhook, {"tenant_id": audience.tenant, "audience": audience.audience})
        else:
            with MemberTable(
                self._login(audience.tenant, said), said.table, audience.tenant, audience.audience
            ) as rows:
                yield PostgresSink(rows)

    def require(self, audience: Audience) -> None:
        """Go on only where all destinations of a document may be sent to.

        Raises:
            ConfigError: one may not, or its secret or database is not there.
        """
        for name, said in audience.deliver.items():
            try:
                self._require(audience.tenant, said)
            except ConfigError as error:
                raise ConfigError(f"audience {audience.audience!r}: deliver.{name}: {error}") from None

    def _require(self, tenant_id: str, said: Destination) -> None:
        if isinstance(said, ToWebhook):
            self.secret(said)
        elif isinstance(said, ToPostgres):
            self._login(tenant_id, said)

    def secret(self, said: ToWebhook) -> SecretStr:
        """What requests to a webhook are signed with; asked for only where it may be sent to."""
        host, port = server_of(said.url)
        require_allowed_host(host, port, is_inside=leads_inside(host))
        return source_secret(said.secret_ref, host, port)

    def _login(self, tenant_id: str, said: ToPostgres) -> dict[str, Any]:
        rows = [one for one in self._control.read().databases if one.db_name == said.database]
        mine = [one for one in rows if one.tenant_id == tenant_id]
        if not mine:
            raise ConfigError(
                f"There is no database {said.database!r} of {tenant_id} in source_databases: a row names its address "
                "and its login."
            )
        row = mine[0]
        return {
            "host": row.host, "port": row.port, "dbname": row.db_name, "user": row.user,
            "password": source_secret(row.password_ref, row.host, row.port).get_secret_value(),
            "sslmode": strictest_sslmode(row.sslmode),
        }  # fmt: skip


def require_labels(control: ControlDb, audience: Audience) -> None:
    """Go on only where a document's labels are those of silos: others have nodes by the million.

    Raises:
        ConfigError: it names another label.
    """
    rows = control.read()
    mine = {one.database_id for one in rows.databases if one.tenant_id == audience.tenant}
    tables = {one.table_id for one in rows.tables if one.database_id in mine}
    labels = {label for table_id, label in rows.labels.items() if table_id in tables}
    for leaf in leaves_of(audience.who):
        if isinstance(leaf, Label) and leaf.label not in labels:
            known = ", ".join(sorted(labels)) or "none yet"
            raise ConfigError(
                f"audience {audience.audience!r}: {leaf.label!r} is no label of silos (there are: {known})."
            )


def require_possible(settings: Settings, control: ControlDb, audience: Audience) -> None:
    """Go on only where a document's labels are those of silos, and its destinations may be sent to.

    Raises:
        ConfigError: it names another label, or a destination that it may not.
    """
    require_labels(control, audience)
    OpenSink(settings, control).require(audience)

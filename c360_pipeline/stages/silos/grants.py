"""What the login of a silo may do, as statements: connect, and select the columns that the plan reads. Nothing else."""

from collections.abc import Iterable

from psycopg import sql

from c360_pipeline.core.silos.control_rows import INCREMENTAL
from c360_pipeline.core.silos.plan import Extract


def create_role_statement(role: str) -> sql.Composed:
    """Make the login; its password is set by whoever runs this."""
    return sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 10").format(
        sql.Identifier(role)
    )


def grant_statements(db_name: str, role: str, extracts: Iterable[Extract]) -> list[sql.Composed]:
    """Give a login the columns that are read of one database's tables, and take all others from it.

    Args:
        db_name: the database, which the statements must be run in.
        role: the login.
        extracts: tables of that database.
    """
    extracts = list(extracts)
    name = sql.Identifier(role)
    statements = [sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(db_name), name)]
    for schema in sorted({extract.table.schema_name for extract in extracts}):
        where = sql.Identifier(schema)
        statements += [
            sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(where, name),
            sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA {} FROM {}").format(where, name),
        ]
    for extract in extracts:
        columns = [column.at_source for column in extract.columns]
        if extract.table.snapshot_mode == INCREMENTAL and extract.is_stored:
            columns.append("xmin")  # which transaction wrote a row
        statements.append(
            sql.SQL("GRANT SELECT ({}) ON TABLE {} TO {}").format(
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                sql.Identifier(extract.table.schema_name, extract.table.table_name),
                name,
            )
        )
    return statements

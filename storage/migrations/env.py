"""Alembic's entry: migrates the database that the caller hands over, in one write transaction."""

from alembic import context

from storage.database import Database
from storage.tables import metadata

database: Database = context.config.attributes["database"]

with database.write() as connection:
    database.limit_statements(connection, seconds=0)
    # Two releases starting at once: the second waits here and then finds nothing to do.
    database.lock(connection, "migrations")
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=database.sqlite,
        transactional_ddl=False,
    )
    context.run_migrations()

"""Alembic environment: runs the migrations on the given connection, inside its transaction."""

from alembic import context

from sd35.storage.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()

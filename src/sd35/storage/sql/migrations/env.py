"""How Alembic runs the migrations: on the connection it is given, within that one's transaction."""

from alembic import context

from sd35.storage.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()

"""Alembic's environment: runs inside the transaction that `Database.migrate` hands over."""

from alembic import context

from storage.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a column: later migrations copy the table
)
context.run_migrations()

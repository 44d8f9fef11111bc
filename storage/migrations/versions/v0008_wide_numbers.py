"""64-bit numbers on PostgreSQL: 32 bits last a region for months. SQLite has 64 bits already.

What is rebuilt later is dropped first: the indexes that give way to smaller ones, and the views, which hold columns.
"""

from alembic import op
from sqlalchemy import text

from storage.migrations.progress import say

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

GIVING_WAY = (
    "ix_series_state_due_at",
    "ix_series_selection",
    "ix_instances_received_at",
    "ix_jobs_state_shadow_due_at",
    "ix_deliveries_destination_state_due_at",
)
NARROW = (
    "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema() "
    "AND data_type = 'integer' AND table_name IN (SELECT table_name FROM information_schema.tables "
    "WHERE table_schema = current_schema() AND table_type = 'BASE TABLE') ORDER BY table_name, ordinal_position"
)
SEQUENCES = "SELECT sequencename FROM pg_sequences WHERE schemaname = current_schema() ORDER BY sequencename"


def upgrade() -> None:
    """Drop indexes and views; on PostgreSQL, write each table anew with wide columns."""
    for name in GIVING_WAY:
        op.drop_index(name)
    if op.get_bind().dialect.name == "postgresql":
        _drop_views()
        _widen()


def _drop_views() -> None:
    """The node makes them again after the migrations, as it knows from the missing digest."""
    names = "SELECT viewname FROM pg_views WHERE schemaname = current_schema()"
    for (name,) in op.get_bind().execute(text(names)).all():
        op.execute(f'DROP VIEW "{name}" CASCADE')
    op.execute("DELETE FROM properties WHERE name = 'views'")


def _widen() -> None:
    columns: dict[str, list[str]] = {}
    for table, column in op.get_bind().execute(text(NARROW)).all():
        columns.setdefault(table, []).append(column)
    for table, names in columns.items():
        say(f"64-bit numbers in {table}")
        changes = ", ".join(f'ALTER COLUMN "{name}" TYPE BIGINT' for name in names)
        op.execute(f'ALTER TABLE "{table}" {changes}')
    for (name,) in op.get_bind().execute(text(SEQUENCES)).all():
        op.execute(f'ALTER SEQUENCE "{name}" AS BIGINT')

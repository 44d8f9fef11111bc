"""`input_digest` meant two things: the digest of a series' instances is `instances_digest` now."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rename the columns; nothing that they hold changes."""
    for table in ("series", "jobs"):
        op.execute(f"ALTER TABLE {table} RENAME COLUMN input_digest TO instances_digest")

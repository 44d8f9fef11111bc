"""The hosts that share an index, and when each was seen last."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None
works_with_previous = True


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "hosts",
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in ("name", "place", "parts", "version", "schema_version")
        ),
        sa.Column("configuration", sa.String(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("started_at", "seen_at", "ahead_s")),
        sa.Column("stopped_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("name", "place", "parts", name="pk_hosts"),
    )

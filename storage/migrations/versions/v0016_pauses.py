"""Sources and destinations that a person has paused."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "pauses",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("paused_at", sa.Double(), nullable=False),
        sa.Column("paused_by", sa.String(), nullable=False),
        sa.CheckConstraint("kind IN ('source', 'destination')", name="ck_pauses_kind"),
        sa.PrimaryKeyConstraint("kind", "name", name="pk_pauses"),
    )

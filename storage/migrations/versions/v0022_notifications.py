"""Notifications on their way to people."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None
works_with_previous = True


def upgrade() -> None:
    """Create the table."""
    wide = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "notifications",
        sa.Column("id", wide, nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("uid", "rule", "channel", "kind", "state")),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("set_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("attempts", wide, nullable=False),
        sa.Column("refusals", wide, nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.CheckConstraint("state IN ('PENDING', 'SENDING', 'SENT', 'FAILED')", name="ck_notifications_state"),
        sa.PrimaryKeyConstraint("id", name="pk_notifications"),
        sa.UniqueConstraint("uid", name="uq_notifications_uid"),
    )
    waiting = sa.text("state IN ('PENDING', 'SENDING')")
    op.create_index("ix_notifications_waiting", "notifications", ["id"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_index("ix_notifications_rule_created_at", "notifications", ["rule", "created_at"])

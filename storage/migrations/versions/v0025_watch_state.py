"""What a model in use is compared with, how each watch stands, and the alarms."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None
works_with_previous = True

WIDE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CURRENT, OPEN = sa.text("replaced_at IS NULL"), sa.text("ended_at IS NULL")
KEY = ("model_digest", "watch", "fact", "scanner")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "watch_references",
        sa.Column("id", WIDE, nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("model_digest", "model_name", "model_version")),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("content", "digest", "frozen_by", "reason")),
        sa.Column("studies", WIDE, nullable=False),
        sa.Column("frozen_at", sa.Double(), nullable=False),
        sa.Column("replaced_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_watch_references"),
    )
    op.create_index(
        "ix_watch_references_current",
        "watch_references",
        ["model_digest"],
        unique=True,
        sqlite_where=CURRENT,
        postgresql_where=CURRENT,
    )
    op.create_table(
        "watch_assessments",
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("day_utc", sa.String(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("watch", "fact", "scanner")),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("level", "statistic", "sentence")),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.CheckConstraint("level IN ('too_few', 'ok', 'warn', 'alarm')", name="ck_watch_assessments_level"),
        sa.PrimaryKeyConstraint("model_digest", "day_utc", "watch", "fact", "scanner", name="pk_watch_assessments"),
    )
    op.create_table(
        "watch_alarms",
        sa.Column("id", WIDE, nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("model_digest", "model_name", "model_version")),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("watch", "fact", "scanner", "sentence")),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("raised_at", "seen_at")),
        sa.Column("acknowledged_at", sa.Double(), nullable=True),
        sa.Column("acknowledged_by", sa.String(), nullable=True),
        sa.Column("acknowledged_why", sa.String(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_watch_alarms"),
    )
    for name, columns, unique in (("open", [*KEY], True), ("standing", ["raised_at", "id"], False)):
        op.create_index(
            f"ix_watch_alarms_{name}", "watch_alarms", columns, unique=unique, sqlite_where=OPEN, postgresql_where=OPEN
        )

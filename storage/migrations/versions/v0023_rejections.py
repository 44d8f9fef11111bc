"""Images that were rejected after they had been stored."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None
# The former program does not know what was rejected, and would report on it.

WIDE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


STANDING = sa.text("superseded_at IS NULL AND NOT shadow AND batch_id IS NULL")


def upgrade() -> None:
    """Create the table, and an index of the results that stand."""
    op.create_table(
        "rejections",
        sa.Column("id", WIDE, nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("note_uid", sa.String(), nullable=False),
        sa.Column("standing", sa.String(), nullable=False),
        sa.Column("noted_at", sa.Double(), nullable=False),
        sa.CheckConstraint("standing IN ('STANDS', 'OVERRULED')", name="ck_rejections_standing"),
        sa.PrimaryKeyConstraint("id", name="pk_rejections"),
        sa.UniqueConstraint(
            "series_instance_uid", "sop_instance_uid", name="uq_rejections_series_instance_uid_sop_instance_uid"
        ),
    )
    op.create_index(
        "ix_results_standing", "results", ["created_at", "id"], sqlite_where=STANDING, postgresql_where=STANDING
    )

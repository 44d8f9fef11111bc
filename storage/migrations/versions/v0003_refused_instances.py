"""Instances that this node refused: a series is incomplete without them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "refused_instances",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("calling_ae", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("standing", sa.String(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.CheckConstraint("standing IN ('MISSING', 'ACCEPTED', 'UNWANTED')", name="ck_refused_instances_standing"),
        sa.PrimaryKeyConstraint("id", name="pk_refused_instances"),
        sa.UniqueConstraint(
            "series_instance_uid",
            "sop_instance_uid",
            "reason",
            "calling_ae",
            name="uq_refused_instances_series_sop_reason_ae",
        ),
    )

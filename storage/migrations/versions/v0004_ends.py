"""Asking a destination, or the PACS of a series, comes to an end: the counters that a restart must not forget."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns of deliveries and the table of what was tried to complete a series."""
    op.add_column("deliveries", sa.Column("resends", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("deliveries", sa.Column("unconfirmed_at", sa.Double(), nullable=True))
    known = sa.text("unconfirmed_at IS NOT NULL")
    op.create_index(
        "ix_deliveries_unconfirmed_at", "deliveries", ["unconfirmed_at"], sqlite_where=known, postgresql_where=known
    )
    op.create_table(
        "completion_efforts",
        sa.Column("series_pk", sa.Integer(), nullable=False),
        sa.Column("instance_count", sa.Integer(), nullable=False),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.Column("fetched", sa.Integer(), nullable=False),
        sa.Column("contradicted", sa.Boolean(), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["series_pk"], ["series.id"], name="fk_completion_efforts_series_pk"),
        sa.PrimaryKeyConstraint("series_pk", name="pk_completion_efforts"),
    )

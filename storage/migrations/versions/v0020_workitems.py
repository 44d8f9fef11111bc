"""The steps of worklists that the node claims, and the series that they are about."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None
works_with_previous = True

WIDE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "workitems",
        sa.Column("id", WIDE, nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("worklist", "workitem_uid", "transaction_uid")),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("tries", WIDE, nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=True) for name in ("claimed_at", "decided_at", "ended_at")),
        *(sa.Column(name, sa.String(), nullable=True) for name in ("cancel_reason", "reason_code", "reason_text")),
        sa.Column("results", sa.String(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.CheckConstraint(
            "state IN ('CLAIMING', 'CLAIMED', 'FETCHING', 'ANALYSING', 'ENDING', 'COMPLETED', 'CANCELED', 'TAKEN', "
            "'LOST')",
            name="ck_workitems_state",
        ),
        sa.CheckConstraint(
            "(state IN ('COMPLETED', 'CANCELED', 'TAKEN', 'LOST')) = (ended_at IS NOT NULL)", name="ck_workitems_ended"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_workitems"),
        sa.UniqueConstraint("worklist", "workitem_uid", name="uq_workitems_worklist_workitem_uid"),
        sa.UniqueConstraint("transaction_uid", name="uq_workitems_transaction_uid"),
    )
    op.create_table(
        "workitem_series",
        sa.Column("id", WIDE, nullable=False),
        sa.Column("workitem_id", WIDE, nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("study_uid", "series_uid", "instances", "source")),
        sa.ForeignKeyConstraint(["workitem_id"], ["workitems.id"], name="fk_workitem_series_workitem_id"),
        sa.PrimaryKeyConstraint("id", name="pk_workitem_series"),
        sa.UniqueConstraint("workitem_id", "series_uid", name="uq_workitem_series_workitem_id"),
    )
    op.create_index("ix_workitem_series_series_uid", "workitem_series", ["series_uid"])
    for name, columns, condition in (
        ("ix_workitems_open", ["worklist", "due_at", "id"], "ended_at IS NULL"),
        ("ix_workitems_ended_at", ["ended_at"], "ended_at IS NOT NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, "workitems", columns, sqlite_where=where, postgresql_where=where)

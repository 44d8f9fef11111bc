"""Studies with a known result that the node sends to itself, and what is expected of them."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None
works_with_previous = True  # a canary is sent only while every host knows what it is

WIDE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
STATES = "'ASKED', 'SENDING', 'WAITING', 'PASSED', 'DIFFERS', 'FAILED', 'ABANDONED'"
HELD = sa.text("ended_at IS NOT NULL AND cleared_at IS NULL")


def upgrade() -> None:
    """Create both tables; which series are canaries."""
    op.add_column("series", sa.Column("canary", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "canary_runs",
        sa.Column("id", WIDE, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("asked_by", sa.String(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in ("study_instance_uid", "series_instance_uid", "instance_uids")
        ),
        sa.Column("instance_count", WIDE, nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("series_pk", WIDE, nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("said", sa.String(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=True) for name in ("stale_at", "cleared_at")),
        sa.CheckConstraint(f"state IN ({STATES})", name="ck_canary_runs_state"),
        sa.ForeignKeyConstraint(["series_pk"], ["series.id"], name="fk_canary_runs_series_pk"),
        sa.PrimaryKeyConstraint("id", name="pk_canary_runs"),
        sa.UniqueConstraint("study_instance_uid", name="uq_canary_runs_study_instance_uid"),
        sa.UniqueConstraint("series_instance_uid", name="uq_canary_runs_series_instance_uid"),
    )
    op.create_index("ix_canary_runs_state_id", "canary_runs", ["state", "id"])
    op.create_index("ix_canary_runs_asked_at", "canary_runs", ["asked_at"])
    op.create_index("ix_canary_runs_held", "canary_runs", ["id"], sqlite_where=HELD, postgresql_where=HELD)
    op.create_table(
        "canary_expectations",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("source", "model_name", "model_digest", "said")),
        sa.Column("noted_at", sa.Double(), nullable=False),
        sa.Column("noted_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("source", "model_name", "model_digest", name="pk_canary_expectations"),
    )

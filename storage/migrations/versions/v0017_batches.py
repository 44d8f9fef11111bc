"""Batches: one model on many series, in a lane of their own. Their jobs are in no index of live work."""

import sqlalchemy as sa
from alembic import op

from storage.migrations.progress import say

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

WIDE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Of 0010, now without what belongs to batches.
CHANGED = (
    ("ix_series_state_last_instance_at", "series", ("state", "last_instance_at"), "NOT imported"),
    ("ix_series_without_result", "series", ("id",), "NOT has_result AND NOT imported"),
    (
        "ix_jobs_queue",
        "jobs",
        ("shadow", sa.text("priority DESC"), "due_at", "id"),
        "state = 'QUEUED' AND batch_id IS NULL",
    ),
    ("ix_jobs_queued_at", "jobs", ("queued_at",), "state = 'QUEUED' AND batch_id IS NULL"),
    ("ix_jobs_failed", "jobs", ("finished_at",), "state = 'FAILED' AND batch_id IS NULL"),
)
NEW = (
    ("ix_jobs_batch_queue", "jobs", ("batch_id", "due_at", "id"), "state = 'QUEUED' AND batch_id IS NOT NULL"),
    ("ix_batches_running", "batches", ("id",), "state = 'RUNNING'"),
    ("ix_batch_cases_waiting", "batch_cases", ("batch_id", "due_at", "id"), "state = 'WAITING'"),
    ("ix_batch_cases_queued", "batch_cases", ("batch_id", "id"), "state = 'QUEUED'"),
    ("ix_batch_cases_series", "batch_cases", ("series_pk",), "state = 'QUEUED'"),
    ("ix_batch_cases_ended", "batch_cases", ("batch_id", "ended_at"), "ended_at IS NOT NULL"),
    ("ix_batch_cases_job_id", "batch_cases", ("job_id",), None),
)


def upgrade() -> None:
    """Create the tables and the lane."""
    op.add_column("series", sa.Column("imported", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("jobs", sa.Column("batch_id", WIDE, nullable=True))
    op.add_column("results", sa.Column("batch_id", WIDE, nullable=True))
    _create_batches()
    _create_cases()
    for name, table, _, _ in CHANGED:
        op.drop_index(name, table)
    for number, (name, table, columns, condition) in enumerate((*CHANGED, *NEW), start=1):
        say(f"index {number} of {len(CHANGED) + len(NEW)}, of {table}")
        where = None if condition is None else sa.text(condition)
        op.create_index(name, table, list(columns), sqlite_where=where, postgresql_where=where)
    if op.get_bind().dialect.name == "postgresql":
        # Nearly all that waits may be of batches: PostgreSQL must know, to seek what is not.
        op.execute("CREATE STATISTICS jobs_lanes (mcv) ON state, batch_id FROM jobs")
        op.execute("ANALYZE jobs")


def _create_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", WIDE, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("query", sa.String(), nullable=False),
        sa.Column("cursor", sa.String(), nullable=False),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("model_version", sa.String(), nullable=False),
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("labels", sa.String(), nullable=True),
        sa.Column("labels_sha256", sa.String(), nullable=True),
        *(sa.Column(name, WIDE, nullable=False) for name in ("cases", "queued", "done", "without_result")),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.CheckConstraint("state IN ('CREATING', 'RUNNING', 'PAUSED', 'DONE', 'CANCELLED')", name="ck_batches_state"),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
    )


def _create_cases() -> None:
    op.create_table(
        "batch_cases",
        sa.Column("id", WIDE, nullable=False),
        sa.Column("batch_id", WIDE, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("series_uid", sa.String(), nullable=False),
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("label_line", WIDE, nullable=True),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("tries", WIDE, nullable=False),
        sa.Column("series_pk", WIDE, nullable=True),
        sa.Column("job_id", WIDE, nullable=True),
        sa.Column("result_id", WIDE, nullable=True),
        sa.Column("reason_code", sa.String(), nullable=True),
        sa.Column("reason_text", sa.String(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.CheckConstraint("state IN ('WAITING', 'QUEUED', 'DONE', 'WITHOUT_RESULT')", name="ck_batch_cases_state"),
        sa.CheckConstraint("(state = 'DONE') = (result_id IS NOT NULL)", name="ck_batch_cases_result"),
        sa.CheckConstraint("(state = 'WITHOUT_RESULT') = (reason_code IS NOT NULL)", name="ck_batch_cases_reason"),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name="fk_batch_cases_batch_id"),
        sa.ForeignKeyConstraint(["series_pk"], ["series.id"], name="fk_batch_cases_series_pk"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_batch_cases_job_id"),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_batch_cases_result_id"),
        sa.PrimaryKeyConstraint("id", name="pk_batch_cases"),
        sa.UniqueConstraint("batch_id", "series_uid", name="uq_batch_cases_batch_id_series_uid"),
    )

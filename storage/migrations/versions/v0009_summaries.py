"""What would take a walk through the whole history is kept up to date: counts, days, results, emptied series."""

import sqlalchemy as sa
from alembic import op

from storage.migrations.progress import say

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COUNTS = (
    "SELECT 'series', state, '', COUNT(*), 0 FROM series GROUP BY state",
    "SELECT 'jobs', state, CASE WHEN shadow THEN 'shadow' ELSE '' END, COUNT(*), 0 FROM jobs "
    "GROUP BY state, CASE WHEN shadow THEN 'shadow' ELSE '' END",
    "SELECT 'deliveries', state, destination, COUNT(*), 0 FROM deliveries GROUP BY state, destination",
    "SELECT 'results', outcome, CASE WHEN shadow THEN 'shadow' ELSE '' END, COUNT(*), 0 FROM results "
    "GROUP BY outcome, CASE WHEN shadow THEN 'shadow' ELSE '' END",
    "SELECT 'conflicts', COALESCE(verdict, 'undecided'), '', COUNT(*), 0 FROM conflicts "
    "GROUP BY COALESCE(verdict, 'undecided')",
    "SELECT 'instances', COALESCE(gone_reason, 'held'), '', COUNT(*), "
    "COALESCE(SUM(CASE WHEN gone_at IS NULL THEN size ELSE 0 END), 0) FROM instances "
    "GROUP BY COALESCE(gone_reason, 'held')",
)
HAVE_RESULTS = (
    "UPDATE series SET has_result = TRUE WHERE EXISTS (SELECT 1 FROM results "
    "WHERE results.series_pk = series.id AND results.superseded_at IS NULL AND NOT results.shadow)"
)
EMPTIED = (
    "UPDATE series SET emptied_at = (SELECT MAX(gone_at) FROM instances WHERE instances.series_pk = series.id) "
    "WHERE id IN (SELECT series_pk FROM instances WHERE gone_reason = 'retention') AND NOT EXISTS "
    "(SELECT 1 FROM instances WHERE instances.series_pk = series.id AND gone_at IS NULL)"
)
SPANS = (
    "INSERT INTO turnarounds (result_id, day_utc, to_result_s, to_delivery_s) "
    "SELECT results.id, strftime('%Y-%m-%d', results.created_at, 'unixepoch'), "
    "results.created_at - jobs.last_instance_at, (SELECT MIN(deliveries.sent_at) FROM deliveries "
    "WHERE deliveries.result_id = results.id) - jobs.last_instance_at "
    "FROM results JOIN jobs ON jobs.id = results.job_id WHERE jobs.state = 'REPORTED' AND NOT jobs.shadow"
)
DAYS = """INSERT INTO turnaround_days WITH ranked AS (
    SELECT day_utc, to_result_s, to_delivery_s,
           ROW_NUMBER() OVER (PARTITION BY day_utc ORDER BY to_result_s) AS result_rank,
           COUNT(*) OVER (PARTITION BY day_utc) AS results,
           ROW_NUMBER() OVER (PARTITION BY day_utc ORDER BY CASE WHEN to_delivery_s IS NULL THEN 1 ELSE 0 END,
                                                            to_delivery_s) AS delivery_rank,
           COUNT(to_delivery_s) OVER (PARTITION BY day_utc) AS delivered
    FROM turnarounds)
SELECT day_utc, MAX(results), MAX(delivered),
       MIN(CASE WHEN result_rank * 100 >= results * 50 THEN to_result_s END),
       MIN(CASE WHEN result_rank * 100 >= results * 95 THEN to_result_s END),
       MIN(CASE WHEN delivery_rank * 100 >= delivered * 50 THEN to_delivery_s END),
       MIN(CASE WHEN delivery_rank * 100 >= delivered * 95 THEN to_delivery_s END)
FROM ranked GROUP BY day_utc"""


def upgrade() -> None:
    """Add the tables and columns, and fill them from what is there."""
    op.add_column("series", sa.Column("has_result", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("series", sa.Column("emptied_at", sa.Double(), nullable=True))
    _create_tallies()
    _create_turnarounds()
    say("which series have results, and which are emptied")
    op.execute(HAVE_RESULTS)
    op.execute(EMPTIED)
    op.execute("UPDATE deliveries SET due_at = NULL WHERE state = 'SUPERSEDED' AND due_at IS NOT NULL")
    say("counts by state")
    for counted in COUNTS:
        op.execute(f"INSERT INTO tallies (subject, state, part, rows, bytes) {counted}")
    say("turnarounds")
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.get_bind().exec_driver_sql(SPANS.replace("%", "%%") if postgresql else SPANS)
    op.execute(DAYS)


def _create_tallies() -> None:
    op.create_table(
        "tallies",
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("part", sa.String(), nullable=False),
        sa.Column("rows", _wide(), nullable=False),
        sa.Column("bytes", _wide(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "state", "part", name="pk_tallies"),
    )


def _create_turnarounds() -> None:
    op.create_table(
        "turnarounds",
        sa.Column("result_id", _wide(), nullable=False),
        sa.Column("day_utc", sa.String(), nullable=False),
        sa.Column("to_result_s", sa.Double(), nullable=False),
        sa.Column("to_delivery_s", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_turnarounds_result_id"),
        sa.PrimaryKeyConstraint("result_id", name="pk_turnarounds"),
    )
    op.create_table(
        "turnaround_days",
        sa.Column("day_utc", sa.String(), nullable=False),
        sa.Column("results", _wide(), nullable=False),
        sa.Column("delivered", _wide(), nullable=False),
        sa.Column("to_result_p50_s", sa.Double(), nullable=True),
        sa.Column("to_result_p95_s", sa.Double(), nullable=True),
        sa.Column("to_delivery_p50_s", sa.Double(), nullable=True),
        sa.Column("to_delivery_p95_s", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("day_utc", name="pk_turnaround_days"),
    )


def _wide() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")

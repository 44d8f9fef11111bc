"""Indexes for what runs by itself and for a person's questions: most hold only the rows that still need something."""

import sqlalchemy as sa
from alembic import op

from storage.migrations.progress import say

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

INDEXES = (
    ("ix_series_open_due_at", "series", ("due_at",), "state = 'OPEN'"),
    ("ix_series_state_last_instance_at", "series", ("state", "last_instance_at"), None),
    ("ix_series_selection", "series", ("selection",), "selection IS NOT NULL"),
    ("ix_series_without_result", "series", ("id",), "NOT has_result"),
    ("ix_series_with_images", "series", ("closed_at",), "closed_at IS NOT NULL AND emptied_at IS NULL"),
    ("ix_instances_lost", "instances", ("gone_reason", "gone_at"), "gone_reason IN ('missing', 'corrupt')"),
    ("ix_jobs_queue", "jobs", ("shadow", sa.text("priority DESC"), "due_at", "id"), "state = 'QUEUED'"),
    ("ix_jobs_queued_at", "jobs", ("queued_at",), "state = 'QUEUED'"),
    ("ix_jobs_running_due_at", "jobs", ("due_at",), "state = 'RUNNING'"),
    ("ix_jobs_failed", "jobs", ("finished_at",), "state = 'FAILED'"),
    ("ix_jobs_waiting_set_at", "jobs", ("set_at",), "state IN ('QUEUED', 'RUNNING')"),
    ("ix_results_not_analysed", "results", ("reason_code", "created_at"), "outcome = 'NOT_ANALYSED' AND NOT shadow"),
    ("ix_deliveries_state_destination_due_at", "deliveries", ("state", "destination", "due_at"), None),
    ("ix_deliveries_pending", "deliveries", ("destination", "created_at"), "state = 'PENDING'"),
    ("ix_deliveries_failed", "deliveries", ("set_at",), "state = 'FAILED'"),
    (
        "ix_deliveries_error",
        "deliveries",
        ("destination", "set_at"),
        "error IS NOT NULL AND state IN ('PENDING', 'FAILED')",
    ),
    ("ix_turnarounds_day_utc_to_result_s", "turnarounds", ("day_utc", "to_result_s"), None),
    ("ix_turnarounds_delivered", "turnarounds", ("day_utc", "to_delivery_s"), "to_delivery_s IS NOT NULL"),
    ("ix_audit_rare", "audit", ("event", "outcome", "at"), "event <> 'instance.received'"),
)
# In one piece each, as the view `connections` writes them.
TIME_UTC = "strftime('%Y-%m-%d %H:%M:%f', at, 'unixepoch')"
CONNECTIONS = (
    "event IN ('association.aborted', 'association.accepted', 'association.rejected', 'association.released', "
    "'connection.aborted', 'connection.closed', 'connection.refused')"
)


def upgrade() -> None:
    """Create the indexes."""
    for number, (name, table, columns, condition) in enumerate(INDEXES, start=1):
        say(f"index {number} of {len(INDEXES)}, of {table}")
        where = None if condition is None else sa.text(condition)
        op.create_index(name, table, list(columns), sqlite_where=where, postgresql_where=where)
    say("index of connections, of audit")
    of_connections = f"CREATE INDEX ix_audit_connections ON audit ({TIME_UTC}) WHERE {CONNECTIONS}"
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.get_bind().exec_driver_sql(of_connections.replace("%", "%%") if postgresql else of_connections)
    if postgresql:
        _gather_statistics()


def _gather_statistics() -> None:
    """Wide columns have lost theirs. And an outcome belongs to few events: PostgreSQL must know, to ask the index."""
    say("statistics")
    op.execute("CREATE STATISTICS audit_kinds (mcv) ON event, outcome FROM audit")
    for table in sorted({table for _, table, _, _ in INDEXES}):
        op.execute(f"ANALYZE {table}")

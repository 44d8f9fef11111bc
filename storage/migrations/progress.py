"""What a migration of a large index says while it works: each step takes seconds to minutes then."""

import structlog
from alembic import op
from sqlalchemy import text

log = structlog.get_logger()

LARGE = 100_000
"""Audit rows from which on a person should know that this takes a while."""


def say(what: str) -> None:
    """Log one step, if the index is large."""
    rows = op.get_bind().scalar(text("SELECT MAX(id) FROM audit")) or 0
    if rows >= LARGE:
        log.info("the index is being brought up to date", step=what, audit_rows=rows)

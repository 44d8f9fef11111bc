"""An index of the deliveries that wait for something: the sender asks for them all the time."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the index."""
    waits = sa.text("due_at IS NOT NULL")
    op.create_index(
        "ix_deliveries_waiting_set_at", "deliveries", ["set_at"], sqlite_where=waits, postgresql_where=waits
    )

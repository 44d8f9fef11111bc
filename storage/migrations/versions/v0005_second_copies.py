"""The same image by a second route is not a contradiction: what was set aside is compared, and judged."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the verdict. What was set aside for other bytes alone is compared now; all else contradicts the index."""
    op.add_column("conflicts", sa.Column("verdict", sa.String(), nullable=True))
    op.execute(
        "UPDATE conflicts SET verdict = 'CONTRADICTS' WHERE reason <> 'the SOP Instance UID holds other content'"
    )
    op.create_index("ix_conflicts_verdict", "conflicts", ["verdict"], unique=False)

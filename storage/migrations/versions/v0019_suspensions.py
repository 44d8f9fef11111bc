"""Models that a person has suspended."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None
# The former program does not know that a model is suspended, and would report with it.


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "suspensions",
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("suspended_at", sa.Double(), nullable=False),
        sa.Column("suspended_by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("model_name", name="pk_suspensions"),
    )

"""Whose an instance is that was set aside: it may be another patient's than the series beside which it was."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None
# The former program leaves it empty, as all rows of before; `forget` reads it from the file then.
works_with_previous = True


def upgrade() -> None:
    """Add the column."""
    op.add_column("conflicts", sa.Column("patient_key", sa.String(), nullable=True))

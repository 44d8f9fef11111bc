"""What results can be compared with later ones of the same patient, and which earlier one each was compared with."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    wide = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "examinations",
        sa.Column("result_id", wide, nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("day", sa.String(), nullable=False),
        sa.Column("scan", sa.String(), nullable=False),
        sa.Column("earlier_id", wide, nullable=True),
        sa.Column("said", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["earlier_id"], ["results.id"], name="fk_examinations_earlier_id"),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_examinations_result_id"),
        sa.PrimaryKeyConstraint("result_id", name="pk_examinations"),
    )
    op.create_index("ix_examinations_person", "examinations", ["person", "model_name", "day", "result_id"])

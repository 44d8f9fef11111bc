"""What readers say about results: the latest verdict of each reader counts, former ones stay."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    wide = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "verdicts",
        sa.Column("id", wide, nullable=False),
        sa.Column("result_id", wide, nullable=False),
        sa.Column("reader", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("own_opinion", sa.String(), nullable=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("given_at", sa.Double(), nullable=False),
        sa.Column("replaced_at", sa.Double(), nullable=True),
        sa.CheckConstraint("verdict IN ('AGREES', 'DISAGREES', 'CANNOT_SAY')", name="ck_verdicts_verdict"),
        sa.CheckConstraint("own_opinion IN ('POSITIVE', 'NEGATIVE')", name="ck_verdicts_own_opinion"),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_verdicts_result_id"),
        sa.PrimaryKeyConstraint("id", name="pk_verdicts"),
    )
    op.create_index("ix_verdicts_result_id", "verdicts", ["result_id"])
    counts = sa.text("replaced_at IS NULL")
    op.create_index(
        "ix_verdicts_counting",
        "verdicts",
        ["result_id", "reader"],
        unique=True,
        sqlite_where=counts,
        postgresql_where=counts,
    )

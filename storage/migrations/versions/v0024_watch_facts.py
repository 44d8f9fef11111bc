"""Facts of results, for watching a model that is in use."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None
works_with_previous = True

WIDE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WORDS = ("manufacturer", "scanner_model", "kernel", "software", "sex")
NUMBERS = (
    *("thickness_mm", "spacing_mm", "pixel_mm", "kv", "mas", "hu_air", "hu_trachea", "hu_lung", "noise_hu"),
    *("lung_volume_ml", "probability"),
)


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "watch_facts",
        sa.Column("result_id", WIDE, nullable=False, autoincrement=False),
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in WORDS),
        sa.Column("age_years", WIDE, nullable=True),
        *(sa.Column(name, sa.Double(), nullable=True) for name in NUMBERS),
        sa.Column("positive", sa.Boolean(), nullable=True),
        sa.CheckConstraint("age_years BETWEEN 0 AND 90", name="ck_watch_facts_age"),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_watch_facts_result_id"),
        sa.PrimaryKeyConstraint("result_id", name="pk_watch_facts"),
    )
    op.create_index("ix_watch_facts_model_digest_at_result_id", "watch_facts", ["model_digest", "at", "result_id"])

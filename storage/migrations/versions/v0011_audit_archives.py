"""Archives of the oldest audit rows. Rows may go only once an archive that is recorded here holds them."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

ARCHIVED = "(SELECT COALESCE(MAX(last_id), 0) FROM audit_archives)"
SQLITE = (
    "DROP TRIGGER audit_no_delete",
    f"CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit WHEN OLD.id > {ARCHIVED} "
    "BEGIN SELECT RAISE(ABORT, 'the audit trail only grows'); END",
    "CREATE TRIGGER audit_archives_no_update BEFORE UPDATE ON audit_archives "
    "BEGIN SELECT RAISE(ABORT, 'the audit trail only grows'); END",
    "CREATE TRIGGER audit_archives_no_delete BEFORE DELETE ON audit_archives "
    "BEGIN SELECT RAISE(ABORT, 'the audit trail only grows'); END",
)
POSTGRESQL = (
    "CREATE FUNCTION audit_goes_when_archived() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN IF OLD.id <= {ARCHIVED} THEN RETURN OLD; END IF; RAISE EXCEPTION 'the audit trail only grows'; END $$",
    "DROP TRIGGER audit_no_change ON audit",
    "CREATE TRIGGER audit_no_change BEFORE UPDATE ON audit FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_goes_when_archived()",
    "CREATE TRIGGER audit_archives_no_change BEFORE UPDATE OR DELETE ON audit_archives "
    "FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_archives_no_truncate BEFORE TRUNCATE ON audit_archives EXECUTE FUNCTION audit_only_grows()",
)


def upgrade() -> None:
    """Create the table, and let what is archived go."""
    wide = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "audit_archives",
        sa.Column("last_id", wide, nullable=False),
        sa.Column("rows", wide, nullable=False),
        sa.Column("previous", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("file", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("archived_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("last_id", name="pk_audit_archives"),
        sa.UniqueConstraint("previous", name="uq_audit_archives_previous"),
    )
    postgresql = op.get_bind().dialect.name == "postgresql"
    for statement in POSTGRESQL if postgresql else SQLITE:
        op.get_bind().exec_driver_sql(statement)

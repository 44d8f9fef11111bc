"""Forgetting a patient: what is under way, and leave to empty rows of the audit trail.

A trigger still refuses every other change of a row: nothing but what leads to a patient may go, and the row's hash and
its place in the chain stay.
"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None
# The former program goes on; its `audit --verify` calls emptied rows altered.
works_with_previous = True

GONE = ("patient_id", "study_uid", "series_uid", "sop_uid", "job_id", "result_id")
LEFT = ("id", "at", "event", "peer_ae", "address", "outcome", "previous", "hash")
EMPTIED = (
    '(OLD.detail IS NULL OR OLD.detail NOT LIKE \'{"forgotten": "%%\') AND '
    'NEW.detail LIKE \'{"forgotten": "%%\' AND '
    + " AND ".join(f"NEW.{name} IS NULL" for name in GONE)
    + " AND "
    + " AND ".join(f"NEW.{name} IS NOT DISTINCT FROM OLD.{name}" for name in LEFT)
)
OTHER_FILE = "NEW.file <> OLD.file AND NEW.file LIKE '%%.without-%%' AND " + " AND ".join(
    f"NEW.{name} = OLD.{name}" for name in ("last_id", "rows", "previous", "hash", "archived_at")
)
SQLITE = (
    "DROP TRIGGER audit_no_update",
    f"CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit WHEN NOT ({EMPTIED}) "
    "BEGIN SELECT RAISE(ABORT, 'the audit trail only grows'); END",
    "DROP TRIGGER audit_archives_no_update",
    f"CREATE TRIGGER audit_archives_no_update BEFORE UPDATE ON audit_archives WHEN NOT ({OTHER_FILE}) "
    "BEGIN SELECT RAISE(ABORT, 'the audit trail only grows'); END",
)
POSTGRESQL = (
    "CREATE FUNCTION audit_row_is_emptied() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN IF {EMPTIED} THEN RETURN NEW; END IF; RAISE EXCEPTION 'the audit trail only grows'; END $$",
    "DROP TRIGGER audit_no_change ON audit",
    "CREATE TRIGGER audit_no_change BEFORE UPDATE ON audit FOR EACH ROW EXECUTE FUNCTION audit_row_is_emptied()",
    "CREATE FUNCTION audit_archive_is_emptied() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN IF {OTHER_FILE} THEN RETURN NEW; END IF; RAISE EXCEPTION 'the audit trail only grows'; END $$",
    "DROP TRIGGER audit_archives_no_change ON audit_archives",
    "CREATE TRIGGER audit_archives_no_change BEFORE UPDATE ON audit_archives "
    "FOR EACH ROW EXECUTE FUNCTION audit_archive_is_emptied()",
    "CREATE TRIGGER audit_archives_no_delete BEFORE DELETE ON audit_archives "
    "FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
)


def upgrade() -> None:
    """Create the tables, and let rows be emptied."""
    wide = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "forgettings",
        sa.Column("id", wide, nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("asked_by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("about", sa.String(), nullable=False),
        sa.Column("upto", wide, nullable=True),
        sa.Column("series", wide, nullable=False),
        sa.Column("files", wide, nullable=False),
        sa.Column("audit_rows", wide, nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_forgettings"),
    )
    unfinished = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_forgettings_unfinished", "forgettings", ["id"], sqlite_where=unfinished, postgresql_where=unfinished
    )
    op.create_table(
        "forgotten_files",
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("forgetting_id", wide, nullable=False),
        sa.ForeignKeyConstraint(["forgetting_id"], ["forgettings.id"], name="fk_forgotten_files_forgetting_id"),
        sa.PrimaryKeyConstraint("path", name="pk_forgotten_files"),
    )
    postgresql = op.get_bind().dialect.name == "postgresql"
    for statement in POSTGRESQL if postgresql else SQLITE:
        op.get_bind().exec_driver_sql(statement if postgresql else _sqlite(statement))


def _sqlite(statement: str) -> str:
    """Older ones do not know IS NOT DISTINCT FROM; their IS means that."""
    return statement.replace("IS NOT DISTINCT FROM", "IS").replace("%%", "%")

"""The first schema: everything from patients to the audit trail."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The trail only grows. A person with a database editor can drop a trigger; the chain of hashes shows that.
APPEND_ONLY_SQLITE = (
    "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit trail only grows'); END",
    "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit trail only grows'); END",
)
APPEND_ONLY_POSTGRESQL = (
    "CREATE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the audit trail only grows'; END $$",
    "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit EXECUTE FUNCTION audit_only_grows()",
)
# The views write times as text with SQLite's strftime; PostgreSQL gets a function of that name for the one format.
STRFTIME_POSTGRESQL = (
    "CREATE FUNCTION strftime(format text, at double precision, unit text) RETURNS text LANGUAGE sql IMMUTABLE AS "
    "$$ SELECT to_char(to_timestamp(at) AT TIME ZONE 'UTC', "
    "CASE format WHEN '%Y-%m-%d' THEN 'YYYY-MM-DD' ELSE 'YYYY-MM-DD HH24:MI:SS.MS' END) $$",
)


def upgrade() -> None:
    """Create the tables, then what guards the audit trail."""
    _create_audit()
    _create_conflicts()
    _create_patients()
    _create_properties()
    _create_studies()
    _create_series()
    _create_instances()
    _create_jobs()
    _create_results()
    _create_deliveries()
    _create_result_objects()
    postgresql = op.get_bind().dialect.name == "postgresql"
    for statement in APPEND_ONLY_POSTGRESQL + STRFTIME_POSTGRESQL if postgresql else APPEND_ONLY_SQLITE:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%") if postgresql else statement)


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=True),
        sa.Column("study_uid", sa.String(), nullable=True),
        sa.Column("series_uid", sa.String(), nullable=True),
        sa.Column("sop_uid", sa.String(), nullable=True),
        sa.Column("job_id", sa.Integer(), nullable=True),
        sa.Column("result_id", sa.Integer(), nullable=True),
        sa.Column("peer_ae", sa.String(), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("detail", sa.String(), nullable=True),
        sa.Column("previous", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_at", "audit", ["at"], unique=False)
    op.create_index("ix_audit_patient_id", "audit", ["patient_id"], unique=False)
    op.create_index("ix_audit_series_uid", "audit", ["series_uid"], unique=False)
    op.create_index("ix_audit_study_uid", "audit", ["study_uid"], unique=False)


def _create_conflicts() -> None:
    op.create_table(
        "conflicts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("calling_ae", sa.String(), nullable=False),
        sa.Column("called_ae", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("times_seen", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_conflicts"),
        sa.UniqueConstraint("path", name="uq_conflicts_path"),
        sa.UniqueConstraint(
            "sop_instance_uid",
            "series_instance_uid",
            "sha256",
            name="uq_conflicts_sop_instance_uid_series_instance_uid_sha256",
        ),
    )
    op.create_index("ix_conflicts_series_instance_uid", "conflicts", ["series_instance_uid"], unique=False)


def _create_patients() -> None:
    op.create_table(
        "patients",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("birth_date", sa.String(), nullable=False),
        sa.Column("sex", sa.String(), nullable=False),
        sa.Column("first_seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_patients"),
        sa.UniqueConstraint("key", name="uq_patients_key"),
    )
    op.create_index("ix_patients_patient_id", "patients", ["patient_id"], unique=False)


def _create_properties() -> None:
    op.create_table(
        "properties",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_properties"),
    )


def _create_studies() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("patient_pk", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("study_date", sa.String(), nullable=False),
        sa.Column("study_time", sa.String(), nullable=False),
        sa.Column("accession_number", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("first_seen_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["patient_pk"], ["patients.id"], name="fk_studies_patient_pk"),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.UniqueConstraint("study_instance_uid", name="uq_studies_study_instance_uid"),
    )
    op.create_index("ix_studies_patient_pk", "studies", ["patient_pk"], unique=False)


def _create_series() -> None:
    op.create_table(
        "series",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_pk", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("patient_key", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("number", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("body_part", sa.String(), nullable=False),
        sa.Column("manufacturer", sa.String(), nullable=False),
        sa.Column("station_name", sa.String(), nullable=False),
        sa.Column("calling_ae", sa.String(), nullable=False),
        sa.Column("called_ae", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("instance_count", sa.Integer(), nullable=False),
        sa.Column("first_instance_at", sa.Double(), nullable=False),
        sa.Column("last_instance_at", sa.Double(), nullable=False),
        sa.Column("quiet_s", sa.Double(), nullable=False),
        sa.Column("set_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("closed_at", sa.Double(), nullable=True),
        sa.Column("input_digest", sa.String(), nullable=True),
        sa.Column("completeness", sa.String(), nullable=True),
        sa.Column("expected_count", sa.Integer(), nullable=True),
        sa.Column("refusal_code", sa.String(), nullable=True),
        sa.Column("refusal_text", sa.String(), nullable=True),
        sa.CheckConstraint("state IN ('OPEN', 'CLOSED')", name="ck_series_state"),
        sa.Column("selection", sa.String(), nullable=True),
        sa.CheckConstraint("revision >= 1", name="ck_series_revision"),
        sa.CheckConstraint(
            "selection IN ('WAITING', 'CHOSEN', 'ANALYSED', 'PASSED_OVER', 'UNSUITABLE')", name="ck_series_selection"
        ),
        sa.ForeignKeyConstraint(["study_pk"], ["studies.id"], name="fk_series_study_pk"),
        sa.PrimaryKeyConstraint("id", name="pk_series"),
        sa.UniqueConstraint("series_instance_uid", name="uq_series_series_instance_uid"),
    )
    op.create_index("ix_series_selection", "series", ["selection"], unique=False)
    op.create_index("ix_series_state_due_at", "series", ["state", "due_at"], unique=False)
    op.create_index("ix_series_study_pk", "series", ["study_pk"], unique=False)


def _create_instances() -> None:
    op.create_table(
        "instances",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_pk", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(), nullable=False),
        sa.Column("instance_number", sa.String(), nullable=False),
        sa.Column("image_type", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("calling_ae", sa.String(), nullable=False),
        sa.Column("called_ae", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("gone_at", sa.Double(), nullable=True),
        sa.Column("gone_reason", sa.String(), nullable=True),
        sa.CheckConstraint("gone_reason IN ('retention', 'missing', 'corrupt')", name="ck_instances_gone_reason"),
        sa.CheckConstraint("(gone_at IS NULL) = (gone_reason IS NULL)", name="ck_instances_gone"),
        sa.ForeignKeyConstraint(["series_pk"], ["series.id"], name="fk_instances_series_pk"),
        sa.PrimaryKeyConstraint("id", name="pk_instances"),
        sa.UniqueConstraint("path", name="uq_instances_path"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_instances_sop_instance_uid"),
    )
    op.create_index("ix_instances_received_at", "instances", ["received_at"], unique=False)
    op.create_index("ix_instances_series_pk", "instances", ["series_pk"], unique=False)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_pk", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("input_digest", sa.String(), nullable=False),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("model_version", sa.String(), nullable=False),
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("shadow", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("interruptions", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("set_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("instance_count", sa.Integer(), nullable=False),
        sa.Column("last_instance_at", sa.Double(), nullable=False),
        sa.Column("refusal_code", sa.String(), nullable=True),
        sa.Column("refusal_text", sa.String(), nullable=True),
        sa.Column("failure_reason", sa.String(), nullable=True),
        sa.Column("queued_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.CheckConstraint("state IN ('QUEUED', 'RUNNING', 'REPORTED', 'FAILED', 'SUPERSEDED')", name="ck_jobs_state"),
        sa.CheckConstraint("attempts >= 0", name="ck_jobs_attempts"),
        sa.ForeignKeyConstraint(["series_pk"], ["series.id"], name="fk_jobs_series_pk"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint(
            "series_pk",
            "revision",
            "input_digest",
            "model_digest",
            "shadow",
            name="uq_jobs_series_pk_revision_input_digest_model_digest_shadow",
        ),
    )
    op.create_index("ix_jobs_state_shadow_due_at", "jobs", ["state", "shadow", "due_at"], unique=False)


def _create_results() -> None:
    op.create_table(
        "results",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("series_pk", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("superseded_at", sa.Double(), nullable=True),
        sa.Column("shadow", sa.Boolean(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason_code", sa.String(), nullable=True),
        sa.Column("reason_text", sa.String(), nullable=True),
        sa.Column("probability", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("positive", sa.Boolean(), nullable=True),
        sa.Column("lung_volume_ml", sa.Double(), nullable=True),
        sa.Column("pixel_digest", sa.String(), nullable=True),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("model_version", sa.String(), nullable=False),
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("unet_sha256", sa.String(), nullable=False),
        sa.Column("decovnet_sha256", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("versions", sa.String(), nullable=False),
        sa.Column("timings", sa.String(), nullable=False),
        sa.Column("checks", sa.String(), nullable=False),
        sa.CheckConstraint("(outcome = 'ANALYSED') = (probability IS NOT NULL)", name="ck_results_analysed"),
        sa.CheckConstraint("(outcome = 'NOT_ANALYSED') = (reason_code IS NOT NULL)", name="ck_results_reason"),
        sa.CheckConstraint("outcome IN ('ANALYSED', 'NOT_ANALYSED')", name="ck_results_outcome"),
        sa.CheckConstraint(
            "probability IS NULL OR (probability >= 0 AND probability <= 1)", name="ck_results_probability"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_results_job_id"),
        sa.ForeignKeyConstraint(["series_pk"], ["series.id"], name="fk_results_series_pk"),
        sa.PrimaryKeyConstraint("id", name="pk_results"),
        sa.UniqueConstraint("job_id", name="uq_results_job_id"),
    )
    op.create_index("ix_results_model_digest", "results", ["model_digest"], unique=False)
    op.create_index("ix_results_series_pk", "results", ["series_pk"], unique=False)


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("set_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("sent_at", sa.Double(), nullable=True),
        sa.Column("committed_at", sa.Double(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("warning", sa.String(), nullable=True),
        sa.Column("object_status", sa.String(), nullable=True),
        sa.Column("commitment_uid", sa.String(), nullable=True),
        sa.Column("commitment_attempts", sa.Integer(), nullable=False),
        sa.Column("refusals", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "state IN ('PENDING', 'SENDING', 'SENT', 'COMMITTED', 'FAILED', 'SUPERSEDED')", name="ck_deliveries_state"
        ),
        sa.CheckConstraint("state NOT IN ('PENDING', 'SENDING') OR due_at IS NOT NULL", name="ck_deliveries_due"),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_deliveries_result_id"),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.UniqueConstraint("commitment_uid", name="uq_deliveries_commitment_uid"),
        sa.UniqueConstraint("result_id", "destination", name="uq_deliveries_result_id_destination"),
    )
    op.create_index(
        "ix_deliveries_destination_state_due_at", "deliveries", ["destination", "state", "due_at"], unique=False
    )


def _create_result_objects() -> None:
    op.create_table(
        "result_objects",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_result_objects_result_id"),
        sa.PrimaryKeyConstraint("id", name="pk_result_objects"),
        sa.UniqueConstraint("path", name="uq_result_objects_path"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_result_objects_sop_instance_uid"),
    )
    op.create_index("ix_result_objects_result_id", "result_objects", ["result_id"], unique=False)

"""What a result says is coded: findings and measurements are rows of their own, not columns of one model.

Of a million results this takes one to two minutes, and the log says so: SQLite can drop a column only by writing the
whole table again.
"""

import sqlalchemy as sa
import structlog
from alembic import op

from config.coding import BILATERAL, FORMER_FINDING, LUNG, MILLILITRE, NEGATIVE, POSITIVE, VOLUME, Code

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

log = structlog.get_logger()
FORMER = ("probability", "positive", "lung_volume_ml", "unet_sha256", "decovnet_sha256")
KEPT = (
    *("id", "job_id", "series_pk", "revision", "created_at", "superseded_at", "shadow", "outcome"),
    *("reason_code", "reason_text", "threshold", "pixel_digest", "model_name", "model_version", "model_digest"),
    *("device", "precision", "versions", "timings", "checks"),
)


def upgrade() -> None:
    """Create the tables, move what the columns say into them, and drop the columns."""
    count = op.get_bind().scalar(sa.text("SELECT count(*) FROM results"))
    if count:
        log.info("the index changes: what results say becomes rows of their own", results=count)
    _drop_views()
    _create_codes()
    _create_findings()
    _create_measurements()
    op.create_table(
        "model_weights",
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("model_digest", "role", name="pk_model_weights"),
    )
    if count:
        _move_findings()
        _move_measurements()
        _move_weights()
    op.create_index("ix_findings_result_id", "findings", ["result_id"])
    op.create_index("ix_measurements_result_id", "measurements", ["result_id"])
    if op.get_bind().dialect.name == "sqlite":
        _rewrite_results()
    else:
        _alter_results()
    if count:
        log.info("the index changed", results=count)


def _drop_views() -> None:
    """They name the columns. `Database.migrate` makes those of this version."""
    names = ("result_weights", "model_results", "series_without_outcome", "turnaround_per_day", "failures_by_cause")
    for name in (*names, "delivery_overview"):
        op.execute(f"DROP VIEW IF EXISTS {name}")
    op.execute("DELETE FROM properties WHERE name = 'views'")


def _create_codes() -> None:
    op.create_table(
        "codes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("scheme", sa.String(), nullable=False),
        sa.Column("meaning", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_codes"),
        sa.UniqueConstraint("value", "scheme", "meaning", name="uq_codes_value_scheme_meaning"),
    )


def _code_column(table: str, name: str, *, nullable: bool) -> tuple[sa.Column[int], sa.ForeignKeyConstraint]:
    return (
        sa.Column(name, sa.Integer(), nullable=nullable),
        sa.ForeignKeyConstraint([name], ["codes.id"], name=f"fk_{table}_{name}"),
    )


def _create_findings() -> None:
    optional = ("interpretation_id", "category_id", "site_id", "laterality_id")
    coded = [_code_column("findings", "concept_id", nullable=False)]
    coded += [_code_column("findings", name, nullable=True) for name in optional]
    op.create_table(
        "findings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        *(column for column, _ in coded),
        sa.Column("certainty", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("segment", sa.String(), nullable=True),
        sa.CheckConstraint("certainty IS NULL OR (certainty >= 0 AND certainty <= 1)", name="ck_findings_certainty"),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_findings_result_id"),
        *(constraint for _, constraint in coded),
        sa.PrimaryKeyConstraint("id", name="pk_findings"),
    )


def _create_measurements() -> None:
    optional = ("site_id", "laterality_id", "topography_id", "derivation_id", "method_id")
    coded = [_code_column("measurements", name, nullable=False) for name in ("concept_id", "unit_id")]
    coded += [_code_column("measurements", name, nullable=True) for name in optional]
    op.create_table(
        "measurements",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        *(column for column, _ in coded),
        sa.Column("segment", sa.String(), nullable=True),
        sa.Column("qualifiers", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_measurements_result_id"),
        *(constraint for _, constraint in coded),
        sa.PrimaryKeyConstraint("id", name="pk_measurements"),
    )


def _ids(*wanted: Code) -> list[int]:
    """The rows of codes, made if there are none."""
    codes = sa.table("codes", sa.column("id"), sa.column("value"), sa.column("scheme"), sa.column("meaning"))
    bind, found = op.get_bind(), []
    for code in wanted:
        same = (codes.c.value == code.value) & (codes.c.scheme == code.scheme) & (codes.c.meaning == code.meaning)
        held = bind.scalar(sa.select(codes.c.id).where(same))
        values = {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}
        found.append(held or bind.execute(sa.insert(codes).values(values).returning(codes.c.id)).scalar_one())
    return found


def _move_findings() -> None:
    concept, positive, negative, lung, both = _ids(FORMER_FINDING, POSITIVE, NEGATIVE, LUNG, BILATERAL)
    interpretation = f"CASE WHEN positive IS NULL THEN NULL WHEN positive THEN {positive} ELSE {negative} END"
    op.get_bind().execute(
        sa.text(
            "INSERT INTO findings (result_id, title, concept_id, interpretation_id, site_id, laterality_id, certainty, "  # noqa: S608 - numbers of our own
            f"threshold) SELECT id, :title, {concept}, {interpretation}, {lung}, {both}, probability, threshold "
            "FROM results WHERE probability IS NOT NULL ORDER BY id"
        ),
        {"title": f"{FORMER_FINDING.meaning} classification"},
    )


def _move_measurements() -> None:
    concept, unit, lung, both = _ids(VOLUME, MILLILITRE, LUNG, BILATERAL)
    op.execute(
        "INSERT INTO measurements (result_id, value, concept_id, unit_id, site_id, laterality_id, segment) "  # noqa: S608
        f"SELECT id, lung_volume_ml, {concept}, {unit}, {lung}, {both}, 'Lungs' FROM results "
        "WHERE lung_volume_ml IS NOT NULL ORDER BY id"
    )


def _move_weights() -> None:
    for role in ("unet", "decovnet"):
        op.execute(
            f"INSERT INTO model_weights (model_digest, role, sha256) SELECT model_digest, '{role}', "  # noqa: S608
            f"MIN({role}_sha256) FROM results WHERE {role}_sha256 <> '' GROUP BY model_digest"
        )


def _alter_results() -> None:
    for name in ("analysed", "probability"):
        op.drop_constraint(f"ck_results_{name}", "results", type_="check")
    for name in FORMER:
        op.drop_column("results", name)
    op.add_column("results", sa.Column("seal", sa.Integer(), nullable=False, server_default="1"))
    op.alter_column("results", "seal", server_default=None)


def _rewrite_results() -> None:
    """The table once more, in one pass. Foreign keys are not checked while a migration runs."""
    op.create_table(
        "results_by_code",
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
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("pixel_digest", sa.String(), nullable=True),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("model_version", sa.String(), nullable=False),
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("versions", sa.String(), nullable=False),
        sa.Column("timings", sa.String(), nullable=False),
        sa.Column("checks", sa.String(), nullable=False),
        sa.Column("seal", sa.Integer(), nullable=False),
        sa.CheckConstraint("(outcome = 'NOT_ANALYSED') = (reason_code IS NOT NULL)", name="ck_results_reason"),
        sa.CheckConstraint("outcome IN ('ANALYSED', 'NOT_ANALYSED')", name="ck_results_outcome"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_results_job_id"),
        sa.ForeignKeyConstraint(["series_pk"], ["series.id"], name="fk_results_series_pk"),
        sa.PrimaryKeyConstraint("id", name="pk_results"),
        sa.UniqueConstraint("job_id", name="uq_results_job_id"),
    )
    columns = ", ".join(KEPT)
    op.execute(f"INSERT INTO results_by_code ({columns}, seal) SELECT {columns}, 1 FROM results ORDER BY id")  # noqa: S608
    op.drop_table("results")
    op.rename_table("results_by_code", "results")
    op.create_index("ix_results_model_digest", "results", ["model_digest"], unique=False)
    op.create_index("ix_results_series_pk", "results", ["series_pk"], unique=False)

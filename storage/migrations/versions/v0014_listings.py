"""The worklist: where each series stands, by kind and time; patients by name, studies by accession number."""

# ruff: noqa: S608 - every part of a query is a constant of this file

import re
import unicodedata

import sqlalchemy as sa
from alembic import op

from storage.migrations.progress import say

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

AT_ONCE = 20_000
MANY_KINDS = 4000
ORIGIN = (
    "series.calling_ae AS source, SUBSTR(TRIM(series.manufacturer || ' ' || series.station_name), 1, 64) AS scanner"
)
# Not a subquery for each result: PostgreSQL would go through all findings for each, by their numbers.
FIRST = "(SELECT result_id, MIN(id) AS id FROM findings GROUP BY result_id) AS firsts ON firsts.result_id = results.id"
WITH_RESULT = f"""
    SELECT results.series_pk, series.first_instance_at AS received_at, {ORIGIN}, results.outcome AS standing,
           COALESCE(results.reason_code, '') AS reason_code,
           results.model_name || ' ' || results.model_version AS model,
           CASE WHEN codes.scheme <> 'SCT' THEN '' WHEN codes.value = '10828004' THEN 'POSITIVE'
                WHEN codes.value = '260385009' THEN 'NEGATIVE' ELSE '' END AS finding,
           results.id AS result_id, NULL AS job_id, first.certainty AS probability
    FROM results JOIN series ON series.id = results.series_pk
    LEFT JOIN {FIRST}
    LEFT JOIN findings AS first ON first.id = firsts.id
    LEFT JOIN codes ON codes.id = first.interpretation_id
    WHERE results.superseded_at IS NULL AND NOT results.shadow"""
FAILED = f"""
    SELECT jobs.series_pk, series.first_instance_at, {ORIGIN}, 'FAILED', '',
           jobs.model_name || ' ' || jobs.model_version, '', NULL, jobs.id, NULL
    FROM jobs JOIN series ON series.id = jobs.series_pk AND series.revision = jobs.revision
    WHERE jobs.state = 'FAILED' AND NOT jobs.shadow"""
WITHOUT = f"""
    SELECT series.id, series.first_instance_at, {ORIGIN},
           CASE WHEN series.state = 'OPEN' OR series.selection IN ('WAITING', 'CHOSEN') OR EXISTS (
                     SELECT 1 FROM jobs WHERE jobs.series_pk = series.id AND jobs.revision = series.revision
                     AND NOT jobs.shadow AND jobs.state IN ('QUEUED', 'RUNNING'))
                THEN 'PENDING' ELSE 'KEPT' END,
           COALESCE(series.refusal_code, ''), '', '', NULL, NULL, NULL
    FROM series
    WHERE NOT EXISTS (SELECT 1 FROM results WHERE results.series_pk = series.id AND results.superseded_at IS NULL
                      AND NOT results.shadow)
    AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.series_pk = series.id AND jobs.revision = series.revision
                    AND jobs.state = 'FAILED' AND NOT jobs.shadow)"""
KIND = ("source", "scanner", "standing", "reason_code", "model", "finding")
WEEK = {
    "sqlite": "date(received_at, 'unixepoch', 'weekday 0', '-6 days')",
    "postgresql": "to_char(date_trunc('week', to_timestamp(received_at) AT TIME ZONE 'UTC'), 'YYYY-MM-DD')",
}
SEPARATORS = re.compile(r"[\s,^=]+")
SPELLED_OUT = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "ø": "oe", "å": "aa", "ł": "l"})


def upgrade() -> None:
    """Add the tables and columns, and fill them from what is there."""
    bytewise = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.add_column("patients", sa.Column("name_key", bytewise, nullable=False, server_default=""))
    _fill_names()
    _create_tables()
    _fill_listings()
    _create_indexes()


def _fill_names() -> None:
    say("patients' names as they are looked for")
    connection, last = op.get_bind(), -1
    fill = sa.text("UPDATE patients SET name_key = :key WHERE id = :id")
    find = sa.text("SELECT id, name FROM patients WHERE id > :last ORDER BY id LIMIT :most")
    while rows := connection.execute(find, {"last": last, "most": AT_ONCE}).all():
        last = rows[-1].id
        keys = [{"id": row.id, "key": _name_key(row.name)} for row in rows if row.name]
        if keys:
            connection.execute(fill, keys)


def _name_key(name: str) -> str:
    group = next((part for part in name.split("=") if part.strip(" ^")), "")
    folded = unicodedata.normalize("NFC", group).casefold().translate(SPELLED_OUT)
    plain = "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c))
    return SEPARATORS.sub(" ", plain).strip()[:64]


def _create_tables() -> None:
    wide = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "listing_kinds",
        sa.Column("id", wide, nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in KIND),
        sa.CheckConstraint(
            "standing IN ('PENDING', 'ANALYSED', 'NOT_ANALYSED', 'FAILED', 'KEPT')", name="ck_listing_kinds_standing"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_listing_kinds"),
        sa.UniqueConstraint(*KIND, name="uq_listing_kinds_source"),
    )
    op.create_table(
        "listings",
        sa.Column("id", wide, nullable=False),
        sa.Column("series_pk", wide, nullable=False),
        sa.Column("kind", wide, nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("result_id", wide, nullable=True),
        sa.Column("job_id", wide, nullable=True),
        sa.Column("probability", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["series_pk"], ["series.id"], name="fk_listings_series_pk"),
        sa.ForeignKeyConstraint(["kind"], ["listing_kinds.id"], name="fk_listings_kind"),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_listings_result_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_listings_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_listings"),
    )
    op.create_table(
        "listing_weeks",
        sa.Column("week", sa.String(), nullable=False),
        sa.Column("kind", wide, nullable=False),
        sa.Column("rows", wide, nullable=False),
        sa.PrimaryKeyConstraint("week", "kind", name="pk_listing_weeks"),
    )


def _fill_listings() -> None:
    say("where each series stands")
    if op.get_bind().dialect.name == "postgresql":
        for table in ("series", "results", "findings", "codes", "jobs"):
            op.execute(f"ANALYZE {table}")  # the upgrades before this one may have filled them a moment ago
    names, week = ", ".join(KIND), WEEK[op.get_bind().dialect.name]
    op.execute(f"CREATE TEMPORARY TABLE standings AS {WITH_RESULT} UNION ALL {FAILED} UNION ALL {WITHOUT}")
    kinds = f"SELECT DISTINCT {names} FROM standings"
    # What a sender may choose at will must not make endless kinds.
    if (op.get_bind().scalar(sa.text(f"SELECT COUNT(*) FROM ({kinds}) AS kinds")) or 0) > MANY_KINDS:
        op.execute("UPDATE standings SET scanner = '(others)'")
    op.execute(f"INSERT INTO listing_kinds ({names}) {kinds} ORDER BY {names}")
    same = " AND ".join(f"listing_kinds.{name} = standings.{name}" for name in KIND)
    op.execute(
        "INSERT INTO listings (series_pk, kind, received_at, result_id, job_id, probability) SELECT series_pk, "
        "listing_kinds.id, received_at, CAST(result_id AS BIGINT), CAST(job_id AS BIGINT), probability "
        f"FROM standings JOIN listing_kinds ON {same} ORDER BY received_at, series_pk"
    )
    op.execute("DROP TABLE standings")
    say("how many of each kind a week had")
    op.execute(
        f"INSERT INTO listing_weeks (week, kind, rows) SELECT {week}, kind, COUNT(*) FROM listings GROUP BY 1, 2"
    )
    op.execute("INSERT INTO listing_weeks (week, kind, rows) SELECT '', kind, COUNT(*) FROM listings GROUP BY kind")


def _create_indexes() -> None:
    say("indexes of the worklist")
    for name, table, columns, condition in (
        ("ix_patients_name_key", "patients", ["name_key"], "name_key <> ''"),
        ("ix_studies_accession_number", "studies", ["accession_number"], "accession_number <> ''"),
        ("ix_listings_series_pk", "listings", ["series_pk"], None),
        ("ix_listings_kind_received_at", "listings", ["kind", "received_at", "id"], None),
        ("ix_listings_kind_probability", "listings", ["kind", "probability", "id"], "probability IS NOT NULL"),
    ):
        where = None if condition is None else sa.text(condition)
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
    if op.get_bind().dialect.name == "postgresql":
        for table in ("patients", "studies", "listings", "listing_kinds", "listing_weeks"):
            op.execute(f"ANALYZE {table}")

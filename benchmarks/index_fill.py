"""A large index made by bulk SQL: as a node leaves it that has received 2,700 series a day for as long as it takes.

Rows are made in the schema of FIRST, by columns that every later version has, and the index is then brought up to date.
So whoever fills an index has also upgraded one of this size.
"""

# ruff: noqa: S608 - every part of a query is a constant of this file

from collections.abc import Mapping

from alembic import command
from sqlalchemy import Connection, insert, text

from storage import tallies
from storage.database import Database, migrations
from storage.models import canary_runs

FIRST = "0006"
INSTANCES, AUDIT_ROWS = 5, 8
EVERY_S = 32.0
NOW = 1_800_000_000.0
CHUNK = 20_000
DESTINATIONS = ("PACS", "RESEARCH")

# k: number of a series, from 1. age: how many came after it. Everything about a series follows from these two.
NUMBERS = "WITH RECURSIVE n(k) AS (SELECT CAST(:low AS BIGINT) UNION ALL SELECT k + 1 FROM n WHERE k < :high)"
AGED = f"{NUMBERS}, s AS (SELECT k, :count - k AS age, :now - (:count - k) * :every AS at FROM n)"
UID = "'1.2.840.113619.2.55.3.' || CAST(10000000000 + {0} AS TEXT)"
SHA = "'000000000000000000000000000000000000000000000000000' || CAST(1000000000000 + {0} AS TEXT)"
NAME = "'0000000000000000000' || CAST(1000000000000 + {0} AS TEXT)"
SYLLABLES = "'bacodefigohujokalemonuparesitowevazyxaquscth'"
SYLLABLE = f"SUBSTR({SYLLABLES}, CAST(1 + 2 * (({{0}}) % 22) AS INTEGER), 2)"
FAMILY = " || ".join(SYLLABLE.format(f"k / {step}") for step in (4, 88, 1936))
PERSON = f"{FAMILY} || '^' || {SYLLABLE.format('k / 7')} || {SYLLABLE.format('k / 11')}"
# Ten sources, one of which has hardly sent anything; eighteen scanners; two models; a dozen reasons.
SOURCE = "CASE WHEN k % 20011 = 3 THEN 'RARE' ELSE 'CT' || CAST(k * 7 % 9 AS TEXT) END"
MODEL = "CASE WHEN k % 11 = 0 THEN 'densitometry' ELSE 'covid-ct' END"
REASONS = (
    *("NOT_CHEST", "MISSING_SLICES", "LUNG_CUT_OFF", "KERNEL", "SLICE_THICKNESS", "DERIVED", "NOT_AXIAL", "BODY_PART"),
    *("LOCALIZER", "MASK_MISSES_LUNG", "LOSSY_COMPRESSED", "GANTRY_TILT"),
)
REASON = "CASE k / 3 % 12 " + " ".join(f"WHEN {n} THEN '{code}'" for n, code in enumerate(REASONS)) + " END"
PATIENT = "'P' || CAST(1000000 + k / 4 AS TEXT)"

PATIENTS = f"""INSERT INTO patients (id, key, patient_id, name, birth_date, sex, first_seen_at) {AGED}
    SELECT k / 4, {PATIENT}, {PATIENT}, {PERSON}, '19600229', 'F', at FROM s WHERE k % 4 = 0"""
STUDIES = f"""INSERT INTO studies (id, patient_pk, study_instance_uid, study_date, study_time, accession_number,
    description, first_seen_at) {AGED} SELECT k / 2, k / 4, {UID.format("k / 2")} || '.1', '20260301', '101112',
    CAST(k AS TEXT), 'CT Thorax', at FROM s WHERE k % 2 = 0"""
SERIES = f"""INSERT INTO series (id, study_pk, series_instance_uid, patient_key, modality, number, description,
    body_part, manufacturer, station_name, calling_ae, called_ae, state, revision, instance_count, first_instance_at,
    last_instance_at, quiet_s, set_at, due_at, closed_at, instances_digest, completeness) {AGED}
    SELECT k, k / 2, {UID.format("k")}, {PATIENT}, 'CT', '2', 'Thorax 1.0 Lung', 'CHEST', 'ACME',
    'CT' || CAST(k % 18 AS TEXT), {SOURCE}, 'NODE',
    CASE WHEN age < 20 THEN 'OPEN' ELSE 'CLOSED' END, 1, {INSTANCES}, at, at + 20, 30, at + 20, at + 50,
    CASE WHEN age < 20 THEN NULL ELSE at + 50 END, {SHA.format("k")}, 'quiet-time' FROM s"""
INSTANCES_ = f"""INSERT INTO instances (series_pk, sop_instance_uid, sop_class_uid, transfer_syntax_uid,
    instance_number, image_type, path, sha256, size, calling_ae, called_ae, address, received_at, gone_at, gone_reason)
    {AGED}, m(i) AS (SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5)
    SELECT k, {UID.format("k")} || '.' || i, '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', CAST(i AS TEXT),
    'ORIGINAL\\PRIMARY\\AXIAL', '2026/11/23/' || {NAME.format("k * 10 + i")} || '.dcm',
    {SHA.format("k * 10 + i")}, 526000, 'CT', 'NODE', '10.0.0.1', at + i,
    CASE WHEN k % 5000 = 0 THEN at + 60 END, CASE WHEN k % 5000 = 0 THEN 'missing' END FROM s CROSS JOIN m"""
JOBS = f"""INSERT INTO jobs (id, series_pk, revision, instances_digest, model_name, model_version, model_digest, shadow,
    state, priority, attempts, interruptions, fence, set_at, due_at, instance_count, last_instance_at, failure_reason,
    queued_at, started_at, finished_at) {AGED} SELECT k, k, 1, {SHA.format("k")}, {MODEL}, '1.0', {SHA.format("1")},
    FALSE, CASE WHEN age < 60 THEN 'QUEUED' WHEN age < 62 THEN 'RUNNING' WHEN k % :failing = 0 THEN 'FAILED'
    ELSE 'REPORTED' END, 0, 1, 0, 1, at + 50, CASE WHEN age BETWEEN 60 AND 61 THEN :now + 60 ELSE at + 50 END,
    {INSTANCES}, at + 20,
    CASE WHEN k % :failing = 0 THEN 'out of attempts after 3' END, at + 50, at + 50 + k % 20, at + 55 + k % 60
    FROM s WHERE age >= 20"""
RESULTS = f"""INSERT INTO results (id, job_id, series_pk, revision, created_at, shadow, outcome, reason_code,
    reason_text, probability, threshold, positive, lung_volume_ml, pixel_digest, model_name, model_version,
    model_digest, unet_sha256, decovnet_sha256, device, precision, versions, timings, checks) {AGED}
    SELECT k, k, k, 1, at + 55 + k % 60, FALSE, CASE WHEN k % 3 = 0 THEN 'NOT_ANALYSED' ELSE 'ANALYSED' END,
    CASE WHEN k % 3 = 0 THEN {REASON} END,
    CASE WHEN k % 3 = 0 THEN 'Slices are missing.' END, CASE WHEN k % 3 <> 0 THEN (k % 100) / 100.0 END, 0.5,
    CASE WHEN k % 3 <> 0 THEN k % 100 >= 50 END, 4200, {SHA.format("k")}, {MODEL}, '1.0', {SHA.format("1")},
    {SHA.format("2")}, {SHA.format("3")}, 'cpu', 'float32', '{{"torch": "2.0"}}', '{{"unet": 2.5}}', '[]'
    FROM s WHERE age >= 62 AND k % :failing <> 0"""
OBJECTS = f"""INSERT INTO result_objects (id, result_id, kind, sop_instance_uid, sop_class_uid, series_instance_uid,
    path, sha256, size) {AGED} SELECT k, k, 'report', {UID.format("k")} || '.9', '1.2.840.10008.5.1.4.1.1.88.34',
    {UID.format("k")} || '.8', '2026/11/24/' || {NAME.format("k")} || '.dcm',
    {SHA.format("k")}, 9000 FROM s WHERE age >= 62 AND k % :failing <> 0"""
DELIVERIES = f"""INSERT INTO deliveries (result_id, destination, state, attempts, fence, set_at, due_at, created_at,
    sent_at, committed_at, error, object_status, commitment_uid, commitment_attempts, refusals, unconfirmed_at) {AGED}
    SELECT k, '{DESTINATIONS[0]}', CASE WHEN age < 90 THEN 'PENDING' WHEN age < 92 THEN 'SENDING' WHEN age < 200
    THEN 'SENT' WHEN k % :failing = 1 THEN 'FAILED' WHEN k % :failing = 2 THEN 'SENT'
    WHEN k % 2 = 0 THEN 'SENT' ELSE 'COMMITTED' END,
    1, 1, at + 130,
    CASE WHEN age BETWEEN 90 AND 91 THEN :now + 60 WHEN age < 200 THEN at + 130 END, at + 60 + k % 60,
    CASE WHEN age >= 92 AND k % :failing <> 1
    THEN at + 61 + k % 60 END, CASE WHEN age >= 200 AND k % :failing > 2 THEN at + 130 END,
    CASE WHEN k % :failing = 1 THEN '0xA900' END, '{{}}', {UID.format("k")} || '.7', 1, 0,
    CASE WHEN age >= 200 AND k % :failing = 2 THEN at + 900 END FROM s WHERE age >= 62 AND k % :failing <> 0"""
ASIDE = f"""INSERT INTO conflicts (sop_instance_uid, series_instance_uid, study_instance_uid, reason, path, sha256,
    size, calling_ae, called_ae, address, received_at, times_seen, verdict) {AGED} SELECT {UID.format("k")} || '.1',
    {UID.format("k")}, {UID.format("k / 2")} || '.1', 'the SOP Instance UID holds other content',
    'aside/' || CAST(k AS TEXT), {SHA.format("k")}, 526000, 'CT', 'NODE', '10.0.0.1', at, 1,
    CASE WHEN age < 200 THEN NULL WHEN k % 400 = 0 THEN 'CONTRADICTS' ELSE 'SAME' END FROM s WHERE k % 20 = 0"""
REFUSED = f"""INSERT INTO refused_instances (series_instance_uid, sop_instance_uid, study_instance_uid, patient_id,
    status, reason, calling_ae, address, standing, first_at, last_at, times) {AGED} SELECT {UID.format("k")},
    {UID.format("k")} || '.6', {UID.format("k / 2")} || '.1', {PATIENT}, 'A700', 'the disk is full', 'CT', '10.0.0.1',
    'MISSING', at, at, 1 FROM s WHERE k % :failing = 0"""
EFFORTS = f"""INSERT INTO completion_efforts (series_pk, instance_count, asked, fetched, contradicted, next_at) {AGED}
    SELECT k, {INSTANCES}, 1, 0, FALSE, at + 60 FROM s WHERE age < 20"""
AUDIT = f"""INSERT INTO audit (at, event, patient_id, study_uid, series_uid, sop_uid, job_id, result_id, peer_ae,
    address, outcome, detail, previous, hash) {AGED}, m(i, event, outcome) AS (SELECT 0, 'association.accepted',
    'ACCEPTED' UNION ALL SELECT 1, 'instance.received', 'NEW' UNION ALL SELECT 2, 'instance.received', 'NEW'
    UNION ALL SELECT 3, 'instance.received', 'NEW' UNION ALL SELECT 4, 'instance.received', 'NEW'
    UNION ALL SELECT 5, 'instance.received', 'NEW' UNION ALL SELECT 6, 'result.recorded', 'ANALYSED'
    UNION ALL SELECT 7, 'delivery.sent', 'SENT')
    SELECT at + i, CASE WHEN i = 0 AND k % 100 = 0 THEN 'association.rejected' WHEN i = 7 AND k % :failing = 1
    THEN 'delivery.failed' ELSE event END, CASE WHEN i > 0 THEN {PATIENT} END,
    CASE WHEN i > 0 THEN {UID.format("k / 2")} || '.1' END, CASE WHEN i > 0 THEN {UID.format("k")} END,
    CASE WHEN i BETWEEN 1 AND 5 THEN {UID.format("k")} || '.' || i END, CASE WHEN i > 5 THEN k END,
    CASE WHEN i > 5 THEN k END, CASE WHEN i < 6 THEN 'CT' END, CASE WHEN i < 6 THEN '10.0.0.1' END,
    CASE WHEN i = 0 AND k % 100 = 0 THEN 'UNKNOWN_AE' WHEN i = 7 AND k % :failing = 1 THEN 'FAILED' ELSE outcome END,
    CASE WHEN i BETWEEN 1 AND 5 THEN '{{"sha256": "' || {SHA.format("k * 10 + i")} || '", "size": 526000}}'
    WHEN i = 6 THEN '{{"content_sha256": "' || {SHA.format("k")} || '", "model": "covid-ct 1.0"}}' END,
    {SHA.format("k * 10 + i")}, {SHA.format("k * 10 + i")} FROM s CROSS JOIN m ORDER BY k, i"""

STEPS = (
    PATIENTS,
    STUDIES,
    SERIES,
    INSTANCES_,
    JOBS,
    RESULTS,
    OBJECTS,
    DELIVERIES,
    ASIDE,
    REFUSED,
    EFFORTS,
    AUDIT,
)
# A batch over one series in ten, in the schema of today: each has its job in the lane, 20 of its cases are in hand.
BATCH = """INSERT INTO batches (id, state, source, query, cursor, model_name, model_version, model_digest, cases,
    queued, done, without_result, created_at) VALUES (1, 'RUNNING', 'store', '{"where": "", "keys": {}}', '', 'other',
    '1.0', 'other', :cases, 20, 0, 0, :now)"""
BATCH_JOBS = f"""INSERT INTO jobs (id, series_pk, revision, instances_digest, model_name, model_version, model_digest,
    shadow, state, priority, attempts, interruptions, fence, set_at, due_at, instance_count, last_instance_at,
    queued_at, batch_id) {NUMBERS} SELECT :count + k, k * 10, 1, {SHA.format("k * 10")}, 'other', '1.0', 'other', TRUE,
    'QUEUED', 0, 0, 0, 0, :now - 200000, :now - 200000, {INSTANCES}, :now, :now, 1 FROM n"""
BATCH_CASES = f"""INSERT INTO batch_cases (batch_id, state, series_uid, place, due_at, tries, series_pk, job_id)
    {NUMBERS} SELECT 1, CASE WHEN k <= 20 THEN 'QUEUED' ELSE 'WAITING' END, {UID.format("k * 10")}, '', 0, 0, k * 10,
    CASE WHEN k <= 20 THEN :count + k END FROM n"""
# A worklist's steps: every tenth series was one, and a few are in hand.
WORKITEMS = f"""INSERT INTO workitems (id, worklist, workitem_uid, transaction_uid, state, tries, due_at, created_at,
    ended_at, results) {NUMBERS} SELECT k, 'ris', {UID.format("k")} || '.5', {UID.format("k")} || '.4',
    CASE WHEN k <= 4 THEN 'ANALYSING' ELSE 'COMPLETED' END, 0, :now - 10, :now - 60,
    CASE WHEN k > 4 THEN :now - k END, '[]' FROM n"""
WORKITEM_SERIES = f"""INSERT INTO workitem_series (workitem_id, study_uid, series_uid, instances, source) {NUMBERS}
    SELECT k, {UID.format("k * 10 / 2")} || '.1', {UID.format("k * 10")}, '[]', 'PACS' FROM n"""
SEQUENCES = ("patients", "studies", "series", "jobs", "results", "result_objects")


def fill(url: str, count: int, failing: int = 1000) -> None:
    """Make an index of `count` series in the schema of FIRST.

    count: a multiple of 4. failing: one in so many jobs failed, one delivery failed, and one was not confirmed.
    """
    database = Database(url)
    config = migrations()
    with database.transaction() as tx:
        config.attributes["connection"] = tx
        command.upgrade(config, FIRST)
    for low in range(1, count + 1, CHUNK):
        with database.transaction() as tx:
            _fill(tx, {"low": low, "high": min(low + CHUNK - 1, count), "count": count, "failing": failing})
    with database.transaction() as tx:
        for table in SEQUENCES if tx.dialect.name == "postgresql" else ():
            tx.execute(text(f"SELECT setval('{table}_id_seq', (SELECT MAX(id) FROM {table}))"))
    database.close()


def add_batch(database: Database, count: int) -> None:
    """A batch with count / 10 jobs that wait, in an index of `count` series that is up to date."""
    values = {"low": 1, "high": count // 10, "count": count, "cases": count // 10, "now": NOW}
    with database.transaction() as tx:
        for step in (BATCH, BATCH_JOBS, BATCH_CASES):
            tx.execute(text(step), {name: value for name, value in values.items() if f":{name}" in step})
        if tx.dialect.name == "postgresql":
            tx.execute(text("SELECT setval('jobs_id_seq', (SELECT MAX(id) FROM jobs))"))


def add_workitems(database: Database, count: int) -> None:
    """A worklist with count / 10 steps, nearly all of which have ended, in an index that is up to date."""
    values = {"low": 1, "high": count // 10, "now": NOW}
    with database.transaction() as tx:
        for step in (WORKITEMS, WORKITEM_SERIES):
            tx.execute(text(step), {name: value for name, value in values.items() if f":{name}" in step})


def add_canaries(database: Database, count: int) -> None:
    """count / 10 canaries that passed, one each hour, in an index that is up to date."""
    how_many = count // 10
    rows = [
        {
            "state": "PASSED",
            "asked_at": NOW - 3600.0 * (how_many - number),
            "asked_by": "the schedule",
            "due_at": NOW,
            "study_instance_uid": f"2.25.{number}",
            "series_instance_uid": f"2.25.{number}.1",
            "instance_uids": "[]",
            "instance_count": 40,
            "source": "s",
            "ended_at": NOW - 3600.0 * (how_many - number),
            "said": "",
            "cleared_at": NOW,
        }
        for number in range(how_many)
    ]
    with database.transaction() as tx:
        tx.execute(insert(canary_runs), rows)
        tallies.add(tx, "canary_runs", "PASSED", how_many)


def _fill(tx: Connection, about: Mapping[str, int]) -> None:
    values = {**about, "now": NOW, "every": EVERY_S}
    if about["low"] == 1:  # k / 2 and k / 4 of the first series are 0
        tx.execute(text("INSERT INTO patients VALUES (0, 'P0', 'P1000000', 'Doe^Jane', '', '', 0)"))
        tx.execute(text("INSERT INTO studies VALUES (0, 0, '1.2.3', '', '', '', '', 0)"))
    for step in STEPS:
        tx.execute(text(step), {name: value for name, value in values.items() if f":{name}" in step})


# What came with a later schema: every result could be compared with an earlier one of its patient.
EXAMINATIONS = """INSERT INTO examinations (result_id, person, model_name, day, scan, earlier_id, said)
    SELECT results.id, 'P' || CAST(1000000 + results.series_pk / 4 AS TEXT), results.model_name,
    CASE WHEN results.series_pk % 4 < 2 THEN '2024-03-01' ELSE '2025-03-01' END, '{"kernel": "B30f"}', NULL, '[]'
    FROM results WHERE results.outcome = 'ANALYSED'"""


# Every result tells of its scan, as far as that was analysed.
FACTS = """INSERT INTO watch_facts (result_id, model_digest, at, manufacturer, scanner_model, kernel, software, sex,
    age_years, thickness_mm, spacing_mm, pixel_mm, kv, mas, hu_air, hu_trachea, hu_lung, noise_hu, lung_volume_ml)
    SELECT id, model_digest, created_at, 'ACME', 'CT' || CAST(series_pk % 18 AS TEXT), 'B30f', 'VA40A', 'F',
    50 + series_pk % 40, 1.0, 1.0, 0.7, 120, 90.0 + series_pk % 30, -998, -1001, -840.0 + series_pk % 30,
    18.0 + series_pk % 7, 4000.0 + series_pk % 999 FROM results"""


def fill_later(database: Database) -> None:
    """Fill the tables that FIRST does not have, of an index that was brought up to date."""
    with database.transaction() as tx:
        for step in (EXAMINATIONS, FACTS):
            tx.exec_driver_sql(step.replace("%", "%%") if tx.dialect.name == "postgresql" else step)

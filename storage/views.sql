-- The views that a site may query; everything else may change with any version.
-- Times are text, UTC, "2026-11-23 09:15:00.123". Durations are seconds, and named so.
--   sqlite3 -readonly -header -column node.db "SELECT * FROM patient_history WHERE patient_id = '4711'"
-- A change here is a new version: say so in views_version below and in docs/views.md.

-- Which version of these views does this index have?
CREATE VIEW views_version AS
SELECT 7 AS version;

-- What touched this patient, this study, this series? Everything that happened, oldest first.
CREATE VIEW patient_history AS
SELECT patient_id,
       strftime('%Y-%m-%d %H:%M:%f', at, 'unixepoch') AS time_utc,
       event, outcome, study_uid, series_uid, sop_uid, job_id, result_id, peer_ae, address, detail, id AS audit_id
FROM audit
WHERE patient_id IS NOT NULL
ORDER BY audit.id;

-- Which series were received and have no outcome yet, and what do they wait for? If several models analyse a series: a
-- row for each of them that has no outcome.
CREATE VIEW series_without_outcome AS
SELECT patient_id, study_instance_uid, series_instance_uid, modality, description, calling_ae, instance_count, revision,
       strftime('%Y-%m-%d %H:%M:%f', last_instance_at, 'unixepoch') AS last_instance_utc,
       CASE
           WHEN state = 'OPEN' THEN 'its quiet time is not over'
           WHEN selection = 'WAITING' THEN 'the best series of its study is not chosen yet'
           WHEN job_id IS NULL AND refusal_code IS NOT NULL THEN 'kept, not analysed: ' || refusal_code
           WHEN job_id IS NULL THEN 'kept, no model is to analyse it'
           WHEN job_state = 'QUEUED' THEN 'queued'
           WHEN job_state = 'RUNNING' THEN 'being analysed'
           WHEN job_state = 'FAILED' THEN 'failed: ' || COALESCE(failure_reason, '')
           ELSE 'superseded'
       END AS waits_for,
       job_id, model_name, canary
FROM (SELECT patients.patient_id, studies.study_instance_uid, series.series_instance_uid, series.modality,
             series.description, series.calling_ae, series.instance_count, series.revision, series.last_instance_at,
             series.state, series.selection, series.refusal_code, jobs.id AS job_id, jobs.state AS job_state,
             jobs.failure_reason, jobs.model_name, series.canary
      FROM jobs
      JOIN series ON series.id = jobs.series_pk
      JOIN studies ON studies.id = series.study_pk
      JOIN patients ON patients.id = studies.patient_pk
      WHERE jobs.state = 'QUEUED' AND jobs.batch_id IS NULL AND NOT jobs.shadow
      UNION ALL
      SELECT patients.patient_id, studies.study_instance_uid, series.series_instance_uid, series.modality,
             series.description, series.calling_ae, series.instance_count, series.revision, series.last_instance_at,
             series.state, series.selection, series.refusal_code, jobs.id AS job_id, jobs.state AS job_state,
             jobs.failure_reason, jobs.model_name, series.canary
      FROM jobs
      JOIN series ON series.id = jobs.series_pk
      JOIN studies ON studies.id = series.study_pk
      JOIN patients ON patients.id = studies.patient_pk
      WHERE jobs.state = 'RUNNING' AND jobs.batch_id IS NULL AND NOT jobs.shadow
      UNION ALL
      SELECT patients.patient_id, studies.study_instance_uid, series.series_instance_uid, series.modality,
             series.description, series.calling_ae, series.instance_count, series.revision, series.last_instance_at,
             series.state, series.selection, series.refusal_code, jobs.id AS job_id, jobs.state AS job_state,
             jobs.failure_reason, jobs.model_name, series.canary
      FROM jobs
      JOIN series ON series.id = jobs.series_pk
      JOIN studies ON studies.id = series.study_pk
      JOIN patients ON patients.id = studies.patient_pk
      WHERE jobs.state = 'FAILED' AND jobs.batch_id IS NULL AND NOT jobs.shadow
      UNION ALL
      SELECT patients.patient_id, studies.study_instance_uid, series.series_instance_uid, series.modality,
             series.description, series.calling_ae, series.instance_count, series.revision, series.last_instance_at,
             series.state, series.selection, series.refusal_code, jobs.id AS job_id, jobs.state AS job_state,
             jobs.failure_reason, jobs.model_name, series.canary
      FROM series
      JOIN studies ON studies.id = series.study_pk
      JOIN patients ON patients.id = studies.patient_pk
      LEFT JOIN jobs ON jobs.id = (SELECT MAX(latest.id) FROM jobs AS latest
                                   WHERE latest.series_pk = series.id AND latest.revision = series.revision
                                         AND NOT latest.shadow)
      WHERE NOT series.has_result AND NOT series.imported
            AND NOT EXISTS (SELECT 1 FROM results WHERE results.series_pk = series.id
                                                        AND results.superseded_at IS NULL AND NOT results.shadow)
            AND NOT EXISTS (SELECT 1 FROM jobs AS other
                            WHERE other.series_pk = series.id AND other.revision = series.revision
                                  AND NOT other.shadow AND other.state IN ('QUEUED', 'RUNNING', 'FAILED'))) AS waiting;

-- Which weights made this result, on what input, with what, on which device?
CREATE VIEW result_weights AS
SELECT results.id AS result_id, studies.study_instance_uid, series.series_instance_uid, results.revision,
       strftime('%Y-%m-%d %H:%M:%f', results.created_at, 'unixepoch') AS created_utc,
       results.outcome, first.certainty AS probability, results.threshold,
       results.model_name, results.model_version, results.model_digest,
       (SELECT sha256 FROM model_weights WHERE model_weights.model_digest = results.model_digest
                                               AND role = 'unet') AS unet_sha256,
       (SELECT sha256 FROM model_weights WHERE model_weights.model_digest = results.model_digest
                                               AND role = 'decovnet') AS decovnet_sha256,
       jobs.instances_digest AS input_digest, results.pixel_digest, results.device, results.precision, results.versions, results.shadow,
       series.canary
FROM results
LEFT JOIN findings AS first ON first.id = (SELECT MIN(id) FROM findings WHERE findings.result_id = results.id)
JOIN jobs ON jobs.id = results.job_id
JOIN series ON series.id = results.series_pk
JOIN studies ON studies.id = series.study_pk;

-- Which files of weights does a model have?
CREATE VIEW model_weight_files AS
SELECT model_digest, role, sha256 FROM model_weights;

-- All results of a model, and whether each is still the current one of its series. A shadow result is of a model that
-- runs beside the one that reports; it was sent nowhere. Those of batches are in batch_results.
CREATE VIEW model_results AS
SELECT results.model_name, results.model_version, results.model_digest,
       results.id AS result_id, patients.patient_id, studies.study_instance_uid, series.series_instance_uid,
       results.revision, strftime('%Y-%m-%d %H:%M:%f', results.created_at, 'unixepoch') AS created_utc,
       results.outcome, results.reason_code, results.reason_text, first.certainty AS probability,
       CASE WHEN interpretation.value IN ('10828004', '260385009')
            THEN interpretation.value = '10828004' END AS positive,
       (SELECT measurements.value FROM measurements
        JOIN codes AS concept ON concept.id = measurements.concept_id
        JOIN codes AS site ON site.id = measurements.site_id
        JOIN codes AS side ON side.id = measurements.laterality_id
        WHERE measurements.result_id = results.id AND concept.value = '118565006' AND site.value = '39607008'
              AND side.value = '51440002'
        ORDER BY measurements.id LIMIT 1) AS lung_volume_ml,
       CASE WHEN results.superseded_at IS NOT NULL THEN 'superseded'
            WHEN results.shadow THEN 'shadow' ELSE 'current' END AS standing,
       results.shadow,
       (SELECT COUNT(*) FROM findings WHERE findings.result_id = results.id) AS findings,
       (SELECT COUNT(*) FROM measurements WHERE measurements.result_id = results.id) AS measurements,
       series.canary
FROM results
LEFT JOIN findings AS first ON first.id = (SELECT MIN(id) FROM findings WHERE findings.result_id = results.id)
LEFT JOIN codes AS interpretation ON interpretation.id = first.interpretation_id
JOIN series ON series.id = results.series_pk
JOIN studies ON studies.id = series.study_pk
JOIN patients ON patients.id = studies.patient_pk
WHERE results.batch_id IS NULL;

-- What each result says, by code: its findings, then its measurements. kind: finding, whose value is the model's
-- certainty, 0 to 1, or measurement. Codes are value and coding scheme, each with its meaning in words.
CREATE VIEW result_measurements AS
SELECT results.id AS result_id, results.model_name, results.model_version, patients.patient_id,
       studies.study_instance_uid, series.series_instance_uid,
       CASE WHEN results.superseded_at IS NOT NULL THEN 'superseded'
            WHEN results.shadow THEN 'shadow' ELSE 'current' END AS standing,
       said.kind, concept.value AS concept_code, concept.scheme AS concept_scheme, concept.meaning AS concept,
       said.value, unit.value AS unit, interpretation.value AS interpretation_code,
       interpretation.scheme AS interpretation_scheme, interpretation.meaning AS interpretation, said.threshold,
       site.value AS site_code, site.scheme AS site_scheme, site.meaning AS site,
       laterality.value AS laterality_code, laterality.scheme AS laterality_scheme, laterality.meaning AS laterality,
       topography.value AS topography_code, topography.scheme AS topography_scheme, topography.meaning AS topography,
       said.segment,
       derivation.value AS derivation_code, derivation.scheme AS derivation_scheme, derivation.meaning AS derivation,
       method.value AS method_code, method.scheme AS method_scheme, method.meaning AS method, said.qualifiers,
       series.canary
FROM (SELECT result_id, 'finding' AS kind, concept_id, certainty AS value, NULL AS unit_id, interpretation_id,
             threshold, site_id, laterality_id, NULL AS topography_id, segment, NULL AS derivation_id,
             NULL AS method_id, NULL AS qualifiers
      FROM findings
      UNION ALL
      SELECT result_id, 'measurement', concept_id, value, unit_id, NULL, NULL, site_id, laterality_id, topography_id,
             segment, derivation_id, method_id, qualifiers
      FROM measurements) AS said
JOIN results ON results.id = said.result_id
JOIN series ON series.id = results.series_pk
JOIN studies ON studies.id = series.study_pk
JOIN patients ON patients.id = studies.patient_pk
JOIN codes AS concept ON concept.id = said.concept_id
LEFT JOIN codes AS unit ON unit.id = said.unit_id
LEFT JOIN codes AS interpretation ON interpretation.id = said.interpretation_id
LEFT JOIN codes AS site ON site.id = said.site_id
LEFT JOIN codes AS laterality ON laterality.id = said.laterality_id
LEFT JOIN codes AS topography ON topography.id = said.topography_id
LEFT JOIN codes AS derivation ON derivation.id = said.derivation_id
LEFT JOIN codes AS method ON method.id = said.method_id
WHERE results.batch_id IS NULL;

-- How long from the last instance to the result, and to the first destination that has it: median and 95th
-- percentile (nearest rank) for each day (UTC) on which results were made.
CREATE VIEW turnaround_per_day AS
SELECT day_utc, results, delivered, to_result_p50_s, to_result_p95_s, to_delivery_p50_s, to_delivery_p95_s
FROM turnaround_days
ORDER BY day_utc;

-- Who connected, and who was refused, and why?
CREATE VIEW connections AS
SELECT strftime('%Y-%m-%d %H:%M:%f', at, 'unixepoch') AS time_utc, event, outcome, peer_ae, address, detail,
       id AS audit_id
FROM audit
WHERE event IN ('association.aborted', 'association.accepted', 'association.rejected', 'association.released',
                'connection.aborted', 'connection.closed', 'connection.refused');

-- What fails, how often, and when last? Jobs, series not analysed, deliveries and instances set aside, by cause; nothing of
-- canaries. They are few: their results are looked up once.
CREATE VIEW failures_by_cause AS
WITH of_canaries AS (SELECT series_pk FROM canary_runs WHERE series_pk IS NOT NULL),
     their_results AS (SELECT results.id FROM of_canaries JOIN results ON results.series_pk = of_canaries.series_pk)
SELECT what, cause, CAST(SUM(counted) AS BIGINT) AS times,
       strftime('%Y-%m-%d %H:%M:%f', MAX(at), 'unixepoch') AS last_utc
FROM (
    SELECT CASE WHEN shadow THEN 'shadow job failed' ELSE 'job failed' END AS what,
           COALESCE(failure_reason, 'unknown') AS cause, 1 AS counted, set_at AS at
    FROM jobs WHERE state = 'FAILED' AND batch_id IS NULL AND series_pk NOT IN (SELECT series_pk FROM of_canaries)
    UNION ALL
    SELECT 'series not analysed', reason_code, COUNT(*), MAX(created_at) FROM results
    WHERE outcome = 'NOT_ANALYSED' AND NOT shadow AND id NOT IN (SELECT id FROM their_results) GROUP BY reason_code
    UNION ALL
    SELECT 'delivery failed to ' || destination, COALESCE(error, 'unknown'), 1, set_at
    FROM deliveries WHERE state = 'FAILED' AND result_id NOT IN (SELECT id FROM their_results)
    UNION ALL
    SELECT 'delivery delayed to ' || destination, COALESCE(error, 'unknown'), 1, set_at
    FROM deliveries WHERE state = 'PENDING' AND attempts > 0 AND result_id NOT IN (SELECT id FROM their_results)
    UNION ALL
    SELECT 'instance set aside', reason, 1, received_at FROM conflicts WHERE verdict = 'CONTRADICTS'
    UNION ALL
    SELECT 'instance file ' || gone_reason, 'the file store lost it', 1, gone_at
    FROM instances WHERE gone_reason IN ('missing', 'corrupt') AND series_pk NOT IN (SELECT series_pk FROM of_canaries)
    UNION ALL
    SELECT 'association rejected', COALESCE(outcome, 'unknown'), COUNT(*), MAX(at) FROM audit
    WHERE event <> 'instance.received' AND event = 'association.rejected' GROUP BY outcome
) AS causes
GROUP BY what, cause;

-- Where did each result go, and does the destination have it?
CREATE VIEW delivery_overview AS
SELECT deliveries.id AS delivery_id, deliveries.destination, deliveries.state, deliveries.attempts,
       series.series_instance_uid, results.id AS result_id, results.outcome,
       strftime('%Y-%m-%d %H:%M:%f', deliveries.created_at, 'unixepoch') AS created_utc,
       strftime('%Y-%m-%d %H:%M:%f', deliveries.sent_at, 'unixepoch') AS sent_utc,
       strftime('%Y-%m-%d %H:%M:%f', deliveries.committed_at, 'unixepoch') AS committed_utc,
       CASE WHEN deliveries.state = 'PENDING'
            THEN strftime('%Y-%m-%d %H:%M:%f', deliveries.due_at, 'unixepoch') END AS next_attempt_utc,
       deliveries.error, deliveries.warning, series.canary
FROM deliveries
JOIN results ON results.id = deliveries.result_id
JOIN series ON series.id = results.series_pk;

-- Which instances were set aside because they contradict what the node holds? standing: contradicts; or to be compared,
-- for what may be the same image by a second route. Those that were found to be that are not listed.
CREATE VIEW instances_set_aside AS
SELECT strftime('%Y-%m-%d %H:%M:%f', received_at, 'unixepoch') AS time_utc, reason,
       sop_instance_uid, series_instance_uid, study_instance_uid, calling_ae, address, times_seen, path, sha256,
       CASE WHEN verdict IS NULL THEN 'to be compared' ELSE 'contradicts' END AS standing
FROM conflicts
WHERE verdict IS NULL OR verdict = 'CONTRADICTS';

-- Which instances did this node refuse, why, and does their series still lack them? standing: missing; came later;
-- accepted, a person decided that the series may do without; unwanted, a rule of the site refuses it.
CREATE VIEW instances_refused AS
SELECT strftime('%Y-%m-%d %H:%M:%f', first_at, 'unixepoch') AS first_utc,
       strftime('%Y-%m-%d %H:%M:%f', last_at, 'unixepoch') AS last_utc, times, status, reason,
       CASE WHEN EXISTS (SELECT 1 FROM instances
                         WHERE instances.sop_instance_uid = refused_instances.sop_instance_uid
                               AND (instances.gone_reason IS NULL OR instances.gone_reason = 'retention'))
            THEN 'came later' ELSE LOWER(standing) END AS standing,
       sop_instance_uid, series_instance_uid, study_instance_uid, patient_id, calling_ae, address
FROM refused_instances;

-- What did readers say about results? standing: current; replaced, if the same reader gave another verdict since.
CREATE VIEW reader_verdicts AS
SELECT verdicts.id AS verdict_id, verdicts.result_id, patients.patient_id, studies.study_instance_uid,
       series.series_instance_uid, results.model_name, results.model_version, results.outcome, results.shadow,
       verdicts.reader, verdicts.verdict, verdicts.own_opinion, verdicts.text,
       strftime('%Y-%m-%d %H:%M:%f', verdicts.given_at, 'unixepoch') AS given_utc,
       CASE WHEN verdicts.replaced_at IS NULL THEN 'current' ELSE 'replaced' END AS standing
FROM verdicts
JOIN results ON results.id = verdicts.result_id
JOIN series ON series.id = results.series_pk
JOIN studies ON studies.id = series.study_pk
JOIN patients ON patients.id = studies.patient_pk;

-- What became of each series of a batch? Nothing of this was sent, or is part of a report. outcome: as in model_results,
-- or WITHOUT_RESULT; empty while it waits. An image that was imported for a batch has series_instance_uid here alone.
CREATE VIEW batch_results AS
SELECT batch_cases.batch_id, batch_cases.id AS case_id, batch_cases.series_uid AS series_instance_uid,
       batch_cases.state, batches.model_name, batches.model_version, batches.model_digest,
       COALESCE(results.outcome, CASE WHEN batch_cases.reason_code IS NOT NULL THEN 'WITHOUT_RESULT' END) AS outcome,
       COALESCE(results.reason_code, batch_cases.reason_code) AS reason_code,
       COALESCE(results.reason_text, batch_cases.reason_text) AS reason_text,
       first.certainty AS probability,
       CASE WHEN interpretation.value IN ('10828004', '260385009')
            THEN interpretation.value = '10828004' END AS positive,
       batch_cases.job_id, batch_cases.result_id,
       strftime('%Y-%m-%d %H:%M:%f', batch_cases.ended_at, 'unixepoch') AS ended_utc
FROM batch_cases
JOIN batches ON batches.id = batch_cases.batch_id
LEFT JOIN results ON results.id = batch_cases.result_id
LEFT JOIN findings AS first ON first.id = (SELECT MIN(id) FROM findings WHERE findings.result_id = results.id)
LEFT JOIN codes AS interpretation ON interpretation.id = first.interpretation_id;

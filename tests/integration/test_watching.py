"""A model that is watched: a reference of its first studies, and an alarm that everybody hears of when they change."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import structlog
from prometheus_client import generate_latest
from sqlalchemy import insert, update
from typer.testing import CliRunner

from config.gateways.notifications import MailSettings, NotificationRule
from config.settings import Settings, StorageSettings, WatchSettings
from config.values import DatabaseUrl
from dicom_node.analysis.current_model import current_model
from dicom_node.cli.app import app
from dicom_node.gateways.notifications.gathering import Gathering
from dicom_node.runtime import metrics, watching
from dicom_node.runtime.metrics import registry_of
from storage import forgotten_rows, listings, watch_alarms, watch_facts, watch_state
from storage.audit_check import check
from storage.database import open_database
from storage.jobs import ModelRef
from storage.models import jobs, results, watch_references
from storage.models import watch_facts as facts
from storage.watch_facts import Facts
from tests.fixtures import index_of
from tests.storage_factory import Store
from tests.web_pages import serving

DAY_S = 86400.0
NOW = time.time()
BEGAN = NOW - 95 * DAY_S
SCANNER = {"manufacturer": "ACME", "scanner_model": "One", "kernel": "B30f", "software": "VA40A", "sex": "F"}
OTHER_KERNEL = "B70f"
WHY = "the protocol was changed on purpose"


def studies(seed: int, first_day: float, days: int, a_day: int, **changed: object) -> list[dict[str, Any]]:
    """Facts of one scanner's studies. first_day: days after the beginning. changed: of each of them."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(days * a_day):
        measured = {
            "age_years": int(np.clip(rng.normal(62, 14), 18, 90)), "thickness_mm": 1.0, "spacing_mm": 1.0,
            "pixel_mm": rng.normal(0.72, 0.05), "kv": 120.0, "mas": rng.normal(95, 20), "hu_air": rng.normal(-998, 1.5),
            "hu_trachea": rng.normal(-1001, 3), "hu_lung": rng.normal(-835, 25), "noise_hu": rng.normal(19, 3),
            "lung_volume_ml": rng.normal(4600, 900), "probability": rng.beta(1.5, 4.0),
        }  # fmt: skip
        at = BEGAN + (first_day + number / a_day) * DAY_S
        made.append({"at": at, **SCANNER, **measured, "positive": measured["probability"] >= 0.5, **changed})
    return made


def add(store: Store, model: ModelRef, found: list[dict[str, Any]]) -> None:
    """Results with these facts, as the worker leaves them; all of one series."""
    if not store.rows("SELECT id FROM series"):
        store.receive(1, now=0.0)
    (row,) = store.rows("SELECT COUNT(*) AS n FROM jobs")
    numbers = [int(str(row["n"])) + 1 + index for index in range(len(found))]
    named = {"model_name": model.name, "model_version": model.version, "model_digest": model.digest, "shadow": False}
    job = {
        "series_pk": 1, "instances_digest": "i", "state": "REPORTED", "priority": 0, "attempts": 1, "interruptions": 0,
        "fence": 1, "set_at": 0.0, "due_at": 0.0, "instance_count": 1, "last_instance_at": 0.0, "queued_at": 0.0,
    }  # fmt: skip
    texts = {"device": "", "precision": "", "versions": "{}", "timings": "{}", "checks": "[]", "seal": 2}
    result = {"series_pk": 1, "outcome": "ANALYSED", **texts}
    with store.database.transaction() as tx:
        tx.execute(insert(jobs), [{"id": n, "revision": n, **named, **job} for n in numbers])
        rows = zip(numbers, found, strict=True)
        tx.execute(
            insert(results),
            [{"id": n, "job_id": n, "revision": n, "created_at": one["at"], **named, **result} for n, one in rows],
        )
        rows = zip(numbers, found, strict=True)
        tx.execute(insert(facts), [{"result_id": n, "model_digest": model.digest, **one} for n, one in rows])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as opened:
        yield opened


def settings_of(store: Store, **sections: object) -> Settings:
    database_url = DatabaseUrl(store.url)
    storage = StorageSettings(database_url=database_url, low_disk_mb=1)
    return Settings(data_dir=store.folder, storage=storage, watch=WatchSettings(enabled=True), **sections)  # type: ignore[arg-type]


def run(store: Store, *arguments: str) -> str:
    """What a command prints."""
    environment = {
        "DICOM_NODE_DATA_DIR": str(store.folder),
        "DICOM_NODE_STORAGE__DATABASE_URL": store.url,
        "DICOM_NODE_WATCH__ENABLED": "true",
    }
    done = CliRunner().invoke(app, list(arguments), env=environment)
    structlog.reset_defaults()  # the command's standard error is closed
    assert done.exit_code == 0, f"{arguments}: {done.output} {done.exception!r}"
    return done.stdout


def command(store: Store, *arguments: str) -> Any:
    """The JSON that a command prints."""
    return json.loads(run(store, *arguments, "--json"))


def notified(settings: Settings, store: Store) -> list[dict[str, Any]]:
    """What the rules tell at two looks in a row."""
    gathering = Gathering(settings, store.database, list)
    gathering.gather(NOW)
    gathering.gather(NOW + 5)
    return [json.loads(str(row["content"])) for row in store.rows("SELECT content FROM notifications")]


def events(store: Store) -> list[str]:
    return [str(row["event"]) for row in store.rows("SELECT event FROM audit WHERE event LIKE 'watch.%' ORDER BY id")]


def test_a_planted_change_of_kernel_is_told_everywhere_until_somebody_answers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = NotificationRule(name="physics", on=("drift-alarm",), mail_to=("physics@hospital.example",))
    settings = settings_of(store, notifications=[rule], mail=MailSettings(host="mail.hospital.example"))
    model = current_model(settings)
    add(store, model, studies(1, 0, 60, 5))
    watching.look(settings, store.database, BEGAN + 59 * DAY_S)
    assert events(store) == [], "too early for a reference"
    watching.look(settings, store.database, BEGAN + 61 * DAY_S)
    assert events(store) == ["watch.reference-frozen"]

    add(store, model, studies(2, 61, 24, 7))
    watching.look(settings, store.database, BEGAN + 85 * DAY_S)
    assert command(store, "status")["drift_alarms"] == [], "nothing changed, and nothing is told"
    before = store.rows("SELECT * FROM results ORDER BY id")

    add(store, model, studies(3, 85, 9, 7, kernel=OTHER_KERNEL))
    with monkeypatch.context() as broken:
        broken.setattr(watch_state, "note_look", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            watching.look(settings, store.database, NOW)
    watching.look(settings, store.database, NOW)  # again, after it was interrupted
    alarms = command(store, "status")["drift_alarms"]
    told = [one for one in alarms if one["watch"] == "new value" and one["fact"] == "kernel"]
    assert len(told) == 1 and OTHER_KERNEL in told[0]["sentence"] and told[0]["acknowledged_at"] is None
    assert f"DRIFT       alarm {told[0]['id']} of model {model.name} {model.version}" in run(store, "status")
    assert events(store).count("watch.alarm-raised") == len(alarms)
    measured = generate_latest(registry_of(settings, store.database, store.files)).decode()
    assert f'dicom_node_drift_alarms{{model="{model.name} {model.version}",watch="new value"}}' in measured
    sent = notified(settings, store)
    assert [one["alarm"] for one in sent] == [one["id"] for one in alarms], "each once"
    assert told[0]["sentence"] in next(one["what"] for one in sent if one["alarm"] == told[0]["id"])
    now = store.rows("SELECT * FROM results ORDER BY id")
    assert now[: len(before)] == before, "an alarm changes no result"

    for one in alarms:
        answer = command(store, "watch", "ack", str(one["id"]), "--by", "dr.reader", "--reason", WHY)
        assert answer["acknowledged_by"] == "dr.reader"
    with store.database.read() as tx:
        assert watch_alarms.unanswered(tx) == [] and len(watch_alarms.standing(tx)) == len(alarms)
        assert check(tx).problems == ()
    assert "DRIFT" not in run(store, "status")
    shown = command(store, "watch", "show", model.name, "--plot", str(store.folder / "figures"))
    assert len(shown["figures"]) > 10 and all("<svg" in Path(one).read_text() for one in shown["figures"])
    assert shown["alarms"][0]["acknowledged_why"] == WHY
    assert {one["level"] for one in shown["models"][0]["watches"]} >= {"ok", "alarm"}

    former = command(store, "watch", "reference", model.name)
    since = datetime.fromtimestamp(BEGAN + 84.95 * DAY_S, UTC).isoformat()
    with pytest.raises(AssertionError, match="wait for 87 more"):
        run(store, "watch", "reference", model.name, "--renew", "--reason", WHY, "--since", since)
    renewed = command(store, "watch", "reference", model.name, "--renew", "--reason", WHY)
    assert renewed["digest"] != former["digest"] and renewed["reason"] == WHY
    assert command(store, "status")["drift_alarms"] == [], "what is compared with is new: its alarms have ended"
    (frozen,) = store.rows("SELECT detail FROM audit WHERE event = 'watch.reference-frozen' ORDER BY id DESC LIMIT 1")
    assert WHY in str(frozen["detail"]) and renewed["digest"] in str(frozen["detail"])


def test_an_alarm_ends_by_itself_when_its_watch_is_content_again(store: Store) -> None:
    model = ModelRef("m", "1", "digest")

    def level(now: float, is_now: str) -> int:
        one = watch_state.Assessed("mix", "kv", "", is_now, "PSI", 0.3, 0.25, "It changed.")
        with store.database.transaction() as tx:
            watch_alarms.settle(tx, model, [one], now)
            return len(watch_alarms.standing(tx))

    assert [level(now, is_now) for now, is_now in enumerate(["warn", "alarm", "warn", "too_few", "alarm"])] == [
        0, 1, 1, 1, 1,
    ]  # fmt: skip
    assert events(store) == ["watch.alarm-raised"], "one alarm, however long it goes on"
    assert level(5, "ok") == 0
    assert level(6, "alarm") == 1
    assert events(store) == ["watch.alarm-raised", "watch.alarm-ended", "watch.alarm-raised"]


def test_the_alarm_of_a_retired_scanner_ends_and_the_audit_trail_says_why(store: Store) -> None:
    model = ModelRef("m", "1", "digest")
    of_scanner = watch_state.Assessed("control chart", "hu_air", "ACME One", "alarm", "EWMA", 6.0, 5.0, "It changed.")
    with store.database.transaction() as tx:
        watch_alarms.settle(tx, model, [of_scanner], NOW)
        watch_alarms.settle(tx, model, [], NOW + 1)
        assert watch_alarms.standing(tx) == []
    (ended,) = store.rows("SELECT detail FROM audit WHERE event = 'watch.alarm-ended'")
    assert "nothing comes from ACME One any more" in str(ended["detail"])


def test_a_look_reads_so_many_rows_however_many_of_them_are_no_studies(store: Store) -> None:
    model = ModelRef("m", "1", "digest")
    add(store, model, studies(1, 0, 40, 5))
    ids = [int(str(row["id"])) for row in store.rows("SELECT id FROM results ORDER BY id")]

    def read(replaced: list[int], most: int) -> tuple[int, int, bool]:
        """How many studies are recent, how many the first, and whether there may be more."""
        with store.database.transaction() as tx:
            tx.execute(update(results).values(superseded_at=None))
            tx.execute(update(results).where(results.c.id.in_(replaced)).values(superseded_at=NOW))
            first, more = watching.beginning(tx, model.digest, most)
            return len(watching.recent(tx, model.digest, NOW, most)), len(first), more

    assert read([], 1000) == (200, 200, False)
    assert read(ids[-30:], 40) == (10, 10, True), "30 of the latest 40 rows are no studies"
    assert read(ids[:20], 180) == (180, 160, True)
    assert read(ids[:40], 160) == (160, 160, True), "the first have too few for a reference, and the latest have not"


def test_it_is_told_how_many_studies_are_gathered_for_a_reference(tmp_path: Path) -> None:
    with serving(tmp_path, watch=WatchSettings(enabled=True)) as pages:
        model = current_model(pages.settings)
        viewer = pages.logged_in("viewer")
        add(pages.store, model, studies(1, 0, 20, 5))
        watching.look(pages.settings, pages.store.database, BEGAN + 21 * DAY_S)
        said = "100 of the 150 analysed studies that a reference needs have been gathered."
        assert said in viewer.get("/models").text
        (shown,) = command(pages.store, "watch", "show")["models"]
        assert [one["sentence"] for one in shown["watches"]] == [said]
        add(pages.store, model, studies(2, 21, 20, 5))
        watching.look(pages.settings, pages.store.database, BEGAN + 42 * DAY_S)
        assert "200 analysed studies have been gathered" in viewer.get("/models").text
        watching.look(pages.settings, pages.store.database, BEGAN + 61 * DAY_S)
        assert "Compared with 200 analysed studies" in viewer.get("/models").text


def test_a_model_that_cannot_be_looked_at_keeps_no_other_from_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    newer, other = ModelRef("newer", "1", "digest 1"), ModelRef("other", "1", "digest 2")
    with store.database.transaction() as tx:
        watch_state.freeze(tx, newer, '{"form":99}', 150, NOW)
    monkeypatch.setattr(watching, "reporting_models", lambda settings: (newer, other))
    with pytest.raises(ValueError, match="form 99"):
        watching.look(settings_of(store), store.database, NOW)
    with store.database.read() as tx:
        assert watch_state.latest(tx, other.digest)[0] == NOW
        assert watch_state.looked_at(tx) is None, "it is tried again, and NobodyWatches goes on counting"


def test_a_look_that_never_succeeded_is_measured_from_the_start(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "STARTED", time.time() - 9 * DAY_S)
    registry = registry_of(settings_of(store), store.database, store.files)
    assert (registry.get_sample_value("dicom_node_watch_last_look_seconds") or 0) >= 9 * DAY_S
    watching.look(settings_of(store), store.database, store.database.now())
    assert (registry.get_sample_value("dicom_node_watch_last_look_seconds") or 0) < DAY_S


def test_the_page_shows_each_watch_and_what_waits_for_an_answer(tmp_path: Path) -> None:
    with serving(tmp_path, watch=WatchSettings(enabled=True)) as pages:
        model = current_model(pages.settings)
        viewer = pages.logged_in("viewer")
        assert "Its first studies are being gathered" in viewer.get("/models").text
        add(pages.store, model, studies(1, 0, 60, 5))
        watching.look(pages.settings, pages.store.database, BEGAN + 61 * DAY_S)
        add(pages.store, model, studies(2, 61, 33, 7, kernel="<b>B70f</b>"))
        for day in (90, 92, 94):
            watching.look(pages.settings, pages.store.database, BEGAN + day * DAY_S)
        text = viewer.get("/models").text
        with pages.store.database.read() as tx:
            alarms = watch_alarms.standing(tx)
        assert alarms and all(f"dicom-node watch ack {one.id} --reason" in text for one in alarms)
        operator = pages.logged_in("operator")
        assert "watch ack" not in operator.get("/models").text, "it has a form"
        form = {"page": "/models", "alarm": alarms[0].id, "reason": WHY}
        assert viewer.fill("/models/acknowledge", **{**form, "page": "/"}).status_code == 403
        assert operator.post("/models/acknowledge", data=form).status_code == 403, "without the form's token"
        for wrong in ({"reason": " "}, {"reason": "w" * 401}, {"alarm": 999}, {"alarm": "x"}, {"alarm": "9" * 30}):
            assert operator.fill("/models/acknowledge", **{**form, **wrong}).status_code == 400
        assert operator.fill("/models/acknowledge", **form).headers["location"] == "/models"
        assert operator.fill("/models/acknowledge", **form).status_code == 400, "once"
        assert f"Acknowledged by operator: {WHY}" in viewer.get("/models").text
        (row,) = pages.audit("watch.alarm-acknowledged")
        assert WHY in str(row["detail"]) and '"operator"' in str(row["detail"])
        assert "<polyline points=" in text and 'class="limit"' in text
        assert "<b>B70f" not in text and "&lt;b&gt;B70f" in text
        assert f"dicom-node watch ack {alarms[1].id}" in viewer.get("/").text, "on Today, too"
        with pages.store.database.transaction() as tx:
            tx.execute(update(watch_references).values(content="{}"))
        assert "was altered" in viewer.get("/models").text
        watching.look(pages.settings, pages.store.database, NOW)
        with pages.store.database.read() as tx:
            assert [one.watch for one in watch_alarms.standing(tx)] == [*(one.watch for one in alarms), "reference"]


def test_it_looks_once_a_day_however_often_the_node_starts(store: Store) -> None:
    settings = settings_of(store)
    store.database.now = lambda: NOW  # type: ignore[method-assign]
    looked = []
    for hours in (0, 1, 23, 25, 26):
        store.database.now = lambda hours=hours: NOW + hours * 3600  # type: ignore[method-assign,misc]
        watching.Watching(settings, store.database).step()
        with store.database.read() as tx:
            looked.append(((watch_state.looked_at(tx) or 0) - NOW) / 3600)
    assert [round(one) for one in looked] == [0, 0, 0, 25, 25]


def test_alarms_of_a_model_that_is_no_longer_in_use_end(store: Store) -> None:
    one = watch_state.Assessed("mix", "kv", "", "alarm", "PSI", 0.3, 0.25, "It changed.")
    with store.database.transaction() as tx:
        watch_alarms.settle(tx, ModelRef("former", "1", "digest"), [one], NOW)
    watching.look(settings_of(store), store.database, NOW)
    with store.database.read() as tx:
        assert watch_alarms.standing(tx) == []
    assert events(store)[-1] == "watch.alarm-ended"


def test_results_of_an_index_of_before_can_be_watched(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{index_of('0.2.0', tmp_path / 'node.db')}")
    with database.transaction() as tx:
        digest = tx.exec_driver_sql("SELECT model_digest FROM results WHERE id = 4").scalar_one()
        watch_facts.record(tx, 4, NOW, Facts("ACME\x00\n", "One " * 40, age_years=104.0))
        (row,) = watch_facts.latest(tx, digest)
    database.close()
    assert (row["manufacturer"], row["age_years"], len(row["scanner_model"])) == ("ACME", 90, 63)


def test_the_facts_of_a_forgotten_patients_scans_go_with_the_results(store: Store) -> None:
    result_id = store.reported()
    with store.database.transaction() as tx:
        watch_facts.record(tx, result_id, NOW, Facts("ACME"))
    with store.database.transaction() as tx:
        listings.remove(tx, 1)
        forgotten_rows.delete_of_series(tx, 1, "1.2.3")
    assert store.rows("SELECT * FROM results") == store.rows("SELECT * FROM watch_facts") == []

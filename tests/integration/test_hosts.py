"""Several hosts on one index in PostgreSQL: who leads, whose clock counts, who may start beside whom."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from sqlalchemy import text
from typer.testing import CliRunner

from config.settings import Settings
from dicom_node.cli.app import app
from dicom_node.errors import NodeError
from dicom_node.runtime import presence, startup
from dicom_node.runtime.presence import only_host
from dicom_node.runtime.supervisor import PARTS, children_of, parts_of
from storage import database as database_module
from storage import hosts, jobs
from storage.database import Database
from storage.errors import DatabaseOutdated, DatabaseTooNew, NotLeader, WrongClock
from storage.facts import get_fact, set_fact
from storage.hosts import Host
from storage.identity import open_store
from storage.leader import Leadership, leader_of
from storage.server_time import BOUND_S
from storage.stores import files_of
from tests.postgresql import postgresql_server
from tests.storage_factory import ATTEMPTS, LEASE_S, Store, fresh_url

NEXT = """
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "9999", "{former}", None, None
{says}
def upgrade():
    op.add_column("pauses", sa.Column("why", sa.String(), nullable=True))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server for this module."""
    with postgresql_server() as url:
        yield url


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty index of its own."""
    monkeypatch.setenv("DICOM_NODE_TEST_DATABASE", server)
    return fresh_url(tmp_path)


@pytest.fixture
def store(url: str, tmp_path: Path) -> Store:
    return Store(tmp_path, url)


def settings_of(store: Store, **more: object) -> Settings:
    """A node's settings with its data where the store is."""
    return Settings(data_dir=store.folder, storage={"database_url": store.url, "low_disk_mb": 1}, **more)


def other_host(store: Store, name: str = "elsewhere", **more: object) -> Host:
    """A second host that lives."""
    now = store.database.now()
    host = Host(name, "/var/node", ("work",), "0.1", "0018", "{}", now, now, 0.0)
    host = replace(host, **more)
    with store.database.transaction() as tx:
        hosts.register(tx, host)
    return host


@pytest.fixture
def two(url: str) -> Iterator[tuple[Leadership, Leadership]]:
    """Two hosts that may lead."""
    both = Leadership(Database(url), "one"), Leadership(Database(url), "two")
    yield both
    for one in both:
        one.give_up()


def ended_by_the_server(leader: Leadership, store: Store) -> None:
    """What the server does when a host has vanished: it ends the connection with the leader's lock."""
    assert leader._held is not None
    pid = leader._held.scalar(text("SELECT pg_backend_pid()"))
    with store.database.transaction() as tx:
        tx.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        tx.execute(text("SELECT pg_sleep(0.1)"))


def test_one_host_leads_and_the_former_leader_can_write_nothing_more(
    store: Store, two: tuple[Leadership, Leadership]
) -> None:
    first, second = two
    assert first.take() and not second.take()
    with first._database.transaction() as tx:
        set_fact(tx, "done by", "one")
    ended_by_the_server(first, store)
    assert second.take() and second.term == first.term + 1
    assert not first.holds()
    with pytest.raises(NotLeader), first._database.transaction() as tx:
        set_fact(tx, "done by", "one again")
    with store.database.read() as tx:
        assert (get_fact(tx, "done by"), leader_of(tx)) == ("one", "two")
    assert not first.take()
    second.give_up()
    assert first.take()
    assert store.events().count("host.leads") == 3


def test_what_a_leader_has_begun_ends_before_the_next_term_begins(
    store: Store, two: tuple[Leadership, Leadership]
) -> None:
    first, second = two
    assert first.take()
    leads = threading.Event()
    with first._database.transaction() as tx:
        set_fact(tx, "done by", "one")
        ended_by_the_server(first, store)
        thread = threading.Thread(target=lambda: second.take() and leads.set())
        thread.start()
        assert not leads.wait(0.5)
    assert leads.wait(20)
    thread.join()
    terms = [row["id"] for row in store.rows("SELECT id FROM audit WHERE event = 'host.leads' ORDER BY id")]
    assert len(terms) == 2


def test_leases_go_by_the_clock_of_the_server(store: Store, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is hours off takes nobody's work, and nobody takes its."""
    right, real = store.database, time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3 * 3600)
    ahead = Database(url)
    assert abs(ahead.now() - right.now()) < 1
    assert ahead.host_is_ahead_s() == pytest.approx(3 * 3600, abs=5)
    store.receive(1, 2, now=right.now() - 100)
    store.close_due(right.now())
    with ahead.transaction() as tx:
        job = jobs.claim(tx, "ahead", ahead.now(), LEASE_S, ATTEMPTS)
    assert job is not None
    with right.transaction() as tx:
        assert jobs.claim(tx, "right", right.now(), LEASE_S, ATTEMPTS) is None
        assert jobs.heartbeat(tx, job.job_id, job.fence, right.now(), LEASE_S)


@pytest.mark.parametrize("ahead_s", [BOUND_S + 30, -3 * 3600])
def test_a_host_whose_clock_is_far_off_is_refused(
    store: Store, ahead_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, real = settings_of(store), time.time
    startup.prepare(settings)
    monkeypatch.setattr(time, "time", lambda: real() + ahead_s)
    with pytest.raises(WrongClock, match="ahead of" if ahead_s > 0 else "behind"):
        open_store(store.url, files_of(settings))


def test_a_start_beside_a_living_host_leaves_what_that_one_holds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = store.database.now()
    store.receive(1, 2, now=now - 100)
    store.close_due(now)
    store.receive(1, now=now, series_uid="1.2.9")
    job = store.claim(now)
    assert job is not None
    other = other_host(store)
    due = "SELECT due_at FROM series WHERE state = 'OPEN'"
    before = store.rows(due)
    startup.prepare(settings_of(store), ("receive",))
    assert store.states("jobs") == ["RUNNING"] and store.rows(due) == before
    with store.database.transaction() as tx:
        hosts.leave(tx, other, store.database.now())
    startup.prepare(settings_of(store), ("receive",))
    assert store.states("jobs") == ["RUNNING"] and store.rows(due) != before
    started = store.rows("SELECT detail FROM audit WHERE event = 'node.started' ORDER BY id")
    assert [json.loads(str(row["detail"]))["host"] for row in started] == [socket.gethostname()] * 2


def test_status_lists_the_hosts_with_what_differs_and_what_nobody_runs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOM_NODE_DATA_DIR", str(store.folder))
    monkeypatch.setenv("DICOM_NODE_STORAGE__DATABASE_URL", store.url)
    settings = settings_of(store)
    startup.prepare(settings, ("receive", "schedule"))
    now = store.database.now()
    longer = {**presence.in_common(settings), "completion.quiet_s": "77"}
    other_host(store, "other", configuration=json.dumps(longer), ahead_s=90.0, schema_version="0017")
    other_host(store, "gone", seen_at=now - 3600, parts=("deliver",))
    found = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)["hosts"]
    by_name = {host["host"]: host for host in found["seen"]}
    assert {name: host["lives"] for name, host in by_name.items()} == {
        "other": True, "gone": False, socket.gethostname(): True
    }  # fmt: skip
    assert by_name["other"]["differs_in"] == ["completion.quiet_s"]
    assert found["nobody_runs"] == ["deliver"]
    words = CliRunner().invoke(app, ["status"]).stdout
    for part in ("host gone: GONE", "no host runs deliver", "its clock is WRONG: 90 s ahead", "schema 0017",
                 "other settings than this command: completion.quiet_s"):  # fmt: skip
        assert part in words
    monkeypatch.setenv("DICOM_NODE_AUDIT__SYSLOG__HOST", "127.0.0.1")
    assert "no host runs deliver, forward-audit" in CliRunner().invoke(app, ["status"]).stdout
    structlog.reset_defaults()
    startup.prepare(settings, ("receive", "schedule"))
    assert json.loads(str(store.rows("SELECT detail FROM audit WHERE event = 'host.differs'")[0]["detail"])) == {
        socket.gethostname(): {"other": ["completion.quiet_s"]}
    }


@pytest.fixture
def next_version(tmp_path: Path) -> Iterator[object]:
    """Become a program whose schema is one version newer, and back."""
    own = database_module.MIGRATIONS

    def become(*, works_with_previous: bool | None) -> None:
        if works_with_previous is None:
            database_module.MIGRATIONS = own
            return
        newer = tmp_path / f"migrations-{works_with_previous}"
        shutil.copytree(own, newer, dirs_exist_ok=True)
        former = sorted(path.name for path in (own / "versions").glob("v*.py"))[-1][1:5]
        says = "works_with_previous = True" if works_with_previous else ""
        (newer / "versions" / "v9999_next.py").write_text(NEXT.format(former=former, says=says))
        database_module.MIGRATIONS = newer

    yield become
    database_module.MIGRATIONS = own


def test_hosts_are_upgraded_one_after_the_other_if_the_new_schema_allows_it(store: Store, next_version) -> None:
    settings = settings_of(store)
    startup.prepare(settings)
    other_host(store)
    next_version(works_with_previous=True)
    startup.prepare(settings)
    assert store.rows("SELECT why FROM pauses") == []
    next_version(works_with_previous=None)
    startup.prepare(settings)  # a host with the former program starts again, and leaves the schema as it is
    open_store(store.url, files_of(settings), create=False).close()
    assert store.rows("SELECT version_num AS v FROM alembic_version") == [{"v": "9999"}]


def test_any_other_schema_waits_until_all_hosts_are_stopped_and_shuts_the_former_program_out(
    store: Store, next_version
) -> None:
    settings = settings_of(store)
    startup.prepare(settings)
    other = other_host(store)
    next_version(works_with_previous=False)
    with pytest.raises(DatabaseOutdated, match=r"elsewhere \(0.1\)"):
        startup.prepare(settings)
    with store.database.transaction() as tx:
        assert {host.name for host in hosts.all_of(tx)} == {other.name, socket.gethostname()}
        for host in hosts.all_of(tx):
            hosts.leave(tx, host, store.database.now())
    startup.prepare(settings)
    next_version(works_with_previous=None)
    for way in (lambda: startup.prepare(settings), lambda: open_store(store.url, files_of(settings), create=False)):
        with pytest.raises(DatabaseTooNew):
            way()


def test_only_some_processes_of_a_host(store: Store) -> None:
    settings = settings_of(store, worker={"devices": ["cpu", "cpu"]})
    names = [child.name for child in children_of(settings, None, 0, parts_of(settings, "work, receive"))]
    assert names == ["receive", "work-0", "work-1"]
    assert parts_of(settings) == ("receive", "schedule", "deliver", "work")
    everything = settings_of(
        store,
        web={"port": 1},
        metrics={"port": 2},
        audit={"syslog": {"host": "h"}},
        cluster={"address": "127.0.0.1:1", "pools": [{"name": "main", "workers": 1}]},
    )
    assert set(parts_of(everything)) == set(PARTS)
    with pytest.raises(NodeError, match="recieve"):
        parts_of(settings, "recieve")
    with pytest.raises(NodeError, match="switches these processes off"):
        parts_of(settings, "web")


def test_a_second_host_cannot_open_the_index_of_another_in_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, stop = Settings(data_dir=tmp_path), threading.Event()
    with only_host(settings, stop), pytest.raises(NodeError, match="SQLite is for one host"), only_host(settings, stop):
        pass
    # On a mount that does not pass locks on: the file is touched while its host lives.
    index = tmp_path / "node.db.host"
    index.write_text("elsewhere")
    touched = threading.Timer(0.3, lambda: index.touch())
    touched.start()
    with pytest.raises(NodeError, match="host elsewhere keeps the index"), only_host(settings, stop, 20):
        pass
    with only_host(settings, stop, 0.5):  # it is gone
        assert index.read_text() == socket.gethostname()
    assert index.read_text() == ""


def test_the_command_says_that_the_second_host_has_come_to_a_sqlite_index(tmp_path: Path) -> None:
    with only_host(Settings(data_dir=tmp_path), threading.Event()):
        done = subprocess.run(
            [sys.executable, "-m", "dicom_node", "run", "--only", "work"],
            env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "DICOM_NODE_DATA_DIR": str(tmp_path)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1 and "PostgreSQL" in done.stdout + done.stderr

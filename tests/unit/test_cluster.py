"""Workers on a Ray cluster: what the settings allow, who is placed, and what an actor does with its worker."""

import os
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from config.load import load_settings, read
from config.settings import Settings
from dicom_node.cli.app import app
from dicom_node.cluster.access import variables
from dicom_node.cluster.actor import WorkerActor, WorkerState
from dicom_node.cluster.engine import Engine
from dicom_node.cluster.pools import Place, places
from dicom_node.cluster.reconciler import are_wanted, reconcile, want
from dicom_node.errors import NodeError
from dicom_node.runtime.supervisor import DO_NOT_RESTART, children_of
from storage.database import Database
from tests.programs import free_port, wait_for

ONE_HOST = 'data_dir = "/var/lib/node"\n[cluster]\naddress = "127.0.0.1:6379"\npools = [{ name = "main" }]\n'
SEVERAL = """
data_dir = "/var/lib/node"
[storage]
database_url = "postgresql+psycopg://node@db/node"
[cluster]
address = "10.20.30.40:6379"
credentials = "/etc/dicom-node/ray-token"
plain = true
pools = [{ name = "main" }]
"""


def mistakes(folder: Path, text: str) -> list[tuple[str, str]]:
    """Key and message of every mistake in a file."""
    file = folder / "node.toml"
    file.write_text(text)
    return [(mistake.key, mistake.message) for mistake in read(file)[1]]


def test_a_cluster_of_one_host_needs_an_address_and_a_pool(tmp_path: Path) -> None:
    assert mistakes(tmp_path, ONE_HOST) == []


def test_a_cluster_of_several_hosts_needs_a_token_and_postgresql_too(tmp_path: Path) -> None:
    assert mistakes(tmp_path, SEVERAL) == []


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        (SEVERAL.replace('credentials = "/etc/dicom-node/ray-token"', ""), "cluster.credentials", "needs a token"),
        (SEVERAL.replace("plain = true", ""), "cluster.address", "readable"),
        (SEVERAL.replace("plain = true", 'tls_key = "ray.key"'), "cluster.tls_key", "belong together"),
        (SEVERAL.replace("postgresql+psycopg://node@db/node", ""), "storage.database_url", "use PostgreSQL"),
        (ONE_HOST.replace('pools = [{ name = "main" }]', ""), "cluster.pools", "at least one pool"),
        (ONE_HOST.replace("[{", '[{ name = "main" }, {'), "cluster.pools", "name of its own"),
        (ONE_HOST.replace("/var/lib/node", "var"), "data_dir", "whole path"),
        (ONE_HOST + 'configuration = "node.toml"', "cluster.configuration", "whole path"),
        (ONE_HOST.replace(":6379", ""), "cluster.address", "10.20.30.40:6379"),
        (ONE_HOST.replace('name = "main"', 'name = "main", gpus = 1.5'), "cluster.pools[0].gpus", "whole number"),
    ],
)
def test_what_a_cluster_lacks_is_named(tmp_path: Path, text: str, key: str, says: str) -> None:
    found = mistakes(tmp_path, text)
    assert key in [where for where, _ in found]
    assert any(says in message for _, message in found)


def settings_with(**cluster: object) -> Settings:
    """Settings of a one-host cluster."""
    given = {"address": "127.0.0.1:6379", "pools": [{"name": "main", "workers": 2}], **cluster}
    return Settings(data_dir=Path("/var/lib/node"), cluster=given)


def test_each_worker_of_each_pool_has_a_place() -> None:
    pools = [{"name": "main", "workers": 2}, {"name": "site_a", "gpus": 0.5, "resource": "site_a"}]
    found = places(settings_with(pools=pools).cluster)
    assert [(one.pool, one.number, one.device, one.resource) for one in found] == [
        ("main", 0, "cpu", ""), ("main", 1, "cpu", ""), ("site_a", 0, "cuda", "site_a")
    ]  # fmt: skip
    assert len({one.name for one in found}) == 3


def test_only_a_node_that_names_a_cluster_keeps_one() -> None:
    assert "cluster" in [child.name for child in children_of(settings_with(), None, 0)]
    assert "cluster" not in [child.name for child in children_of(Settings(), None, 0)]


@dataclass
class Placed(Engine):
    """A stand-in for a cluster that has these actors; tests/faults/test_cluster.py has a real one."""

    actors: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)

    def placed(self) -> set[str]:
        return set(self.actors)

    def place(self, place: Place) -> None:
        self.actors.add(place.name)

    def remove(self, name: str) -> None:
        self.actors.remove(name)

    def _ask(self, question, names, answer_s):
        if question == "end":
            return {name: name not in self.busy for name in names}
        return {name: WorkerState("host", 1, 0.0, 1, None) for name in names}


def test_a_pass_places_what_is_missing_and_lets_the_rest_end() -> None:
    wanted = places(settings_with().cluster)
    engine = Placed({wanted[0].name, "main-7-former", "main-8-former"}, busy={"main-8-former"})
    found = reconcile(engine, wanted)
    assert engine.actors == {wanted[0].name, wanted[1].name, "main-8-former"}
    assert (found.working, found.ending) == (2, 1)
    assert reconcile(Placed(set(engine.actors)), []).ending == 0


def test_a_worker_that_needs_something_else_now_takes_anothers_place() -> None:
    before, after = settings_with(), settings_with(pools=[{"name": "main", "workers": 2, "gpus": 1}])
    former = {place.name for place in places(before.cluster)}
    engine = Placed(set(former))
    reconcile(engine, places(after.cluster))
    assert engine.actors.isdisjoint(former)
    assert engine.actors == {place.name for place in places(after.cluster)}


def test_workers_are_wanted_once_a_person_has_said_so(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/node.db")
    database.migrate()
    with database.transaction() as tx:
        assert not are_wanted(tx)
        want(tx, up=True)
        assert are_wanted(tx)
        want(tx, up=False)
        assert not are_wanted(tx)


def test_the_token_is_read_by_ray_from_a_file_that_nobody_else_may_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef0123456789abcdef\n")
    file.chmod(0o644)  # whatever the umask is
    cluster = settings_with(credentials=str(file)).cluster
    with pytest.raises(NodeError, match="chmod 600"):
        variables(cluster)
    file.chmod(0o600)
    found = variables(cluster)
    assert (found["RAY_AUTH_MODE"], found["RAY_AUTH_TOKEN_PATH"]) == ("token", str(file))
    assert not any("0123456789" in value for value in found.values())
    file.write_text("short\n")
    with pytest.raises(NodeError, match="16 characters") as told:
        variables(cluster)
    assert "short" not in str(told.value).partition("credentials")[2].replace(str(file), "")


def test_without_a_token_ray_is_told_that_there_is_none() -> None:
    assert variables(settings_with().cluster)["RAY_AUTH_MODE"] == "disabled"


def test_an_actor_starts_its_worker_again_each_time_that_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    actor = WorkerActor(str(tmp_path / "missing.toml"), "main", "0", "cpu")
    assert actor.look() == WorkerState(socket.gethostname(), 0, 0.0, 0, None)
    first = actor.run()
    assert actor.run().starts == 1 or actor.look().status is not None, "one that runs is left alone"
    environment = Path(f"/proc/{first.pid}/environ")
    assert b"RAY_" not in (environment.read_bytes() if environment.exists() else b"")
    wait_for(lambda: actor.look().pid == 0, 60, "the worker ends: it has no configuration")
    assert actor.look().status == DO_NOT_RESTART
    assert actor.run().starts >= 2
    wait_for(actor.end, 60, "the worker ends")
    assert actor.run().pid == 0, "one that was asked to end stays away"


def test_a_worker_that_ends_soon_each_time_is_started_less_and_less_often_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, passed_s = WorkerActor("nowhere.toml", "main", "0", "cpu"), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: passed_s[0])
    monkeypatch.setattr(time, "time", lambda: 1e9 - passed_s[0])  # it runs backwards
    monkeypatch.setattr(sys, "executable", "/bin/false")
    started_at = []
    for _ in range(800):
        if actor.run().starts > len(started_at):
            started_at.append(passed_s[0] - 1000)
            assert actor._process is not None
            actor._process.wait()
        passed_s[0] += 1
    assert started_at == [0, 1, 11, 31, 71, 151, 311, 611]


@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_a_cluster_that_is_away_is_said_to_be(tmp_path: Path, command: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(ONE_HOST.replace("/var/lib/node", str(tmp_path / "data")).replace("6379", str(free_port())))
    before = dict(os.environ)
    settings = load_settings(file)
    from dicom_node.runtime.startup import prepare

    prepare(settings)
    try:
        done = CliRunner().invoke(app, ["cluster", command, "--config", str(file)])
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert done.exit_code == 3, done.output
    assert "nothing listens" in done.output


def test_without_a_cluster_the_commands_say_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["cluster", "up"], env={"DICOM_NODE_DATA_DIR": str(tmp_path)})
    assert done.exit_code == 1
    assert "names no address" in str(done.exception)

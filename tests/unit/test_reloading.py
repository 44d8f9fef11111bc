"""What a new configuration changes while a node runs, and what waits for its next start."""

import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from config.settings import Settings
from dicom_node.runtime import supervisor
from dicom_node.runtime.reloading import Copy, compare
from dicom_node.runtime.supervisor import Supervisor, children_of
from tests.programs import wait_for


def settings(**sections: object) -> Settings:
    return Settings.model_validate(sections)


def test_sources_destinations_limits_and_tls_are_taken_at_once(tmp_path: Path) -> None:
    new = settings(
        sources=[{"ae_title": "CT1"}],
        destinations=[{"name": "pacs", "ae_title": "PACS", "host": "h", "port": 104}],
        receiver={"max_associations": 7, "tls_certificate": "a", "tls_key": "b", "tls_authorities": "c"},
    )
    change = compare(settings(), new)
    assert change.waiting == ()
    assert {"sources", "destinations", "receiver.max_associations", "receiver.tls_certificate"} <= set(change.applied)
    assert change.settings == new


def test_the_port_and_the_data_stay_until_a_restart_and_the_children_are_told_so() -> None:
    new = settings(data_dir="elsewhere", receiver={"port": 4242, "max_associations": 7})
    change = compare(settings(), new)
    assert (change.applied, change.waiting) == (("receiver.max_associations",), ("data_dir", "receiver.port"))
    assert change.kept == {"DICOM_NODE_DATA_DIR": "var", "DICOM_NODE_RECEIVER__PORT": "11112"}
    assert (change.settings.receiver.port, change.settings.receiver.max_associations) == (11112, 7)


def test_the_children_keep_an_index_with_its_whole_url() -> None:
    url = "postgresql+psycopg://node:tr0ub4dor@db/index"
    old = Settings(storage={"database_url": url})
    change = compare(old, Settings(storage={"database_url": "postgresql+psycopg://node:other@db/index"}))
    assert change.waiting == ("storage.database_url",)
    assert change.kept == {"DICOM_NODE_STORAGE__DATABASE_URL": url}


def test_the_same_configuration_changes_nothing() -> None:
    one = settings(sources=[{"ae_title": "CT1"}])
    assert (compare(one, one).applied, compare(one, one).waiting) == ((), ())


def test_the_childrens_copy_is_private_and_goes_back_to_what_it_was(tmp_path: Path) -> None:
    source = tmp_path / "node.toml"
    source.write_text("first")
    copy = Copy(source, tmp_path)
    copy.take(b"second")
    assert (copy.path.read_bytes(), stat.S_IMODE(copy.path.stat().st_mode)) == (b"second", 0o600)
    copy.give_back()
    assert copy.path.read_bytes() == b"first"


@pytest.fixture
def slow_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the program of the children, which then begin to listen once the file that is returned is there."""
    program, begin = tmp_path / "program", tmp_path / "begin"
    program.write_text(
        f"#!/bin/sh\nwhile [ ! -e {begin} ]; do sleep 0.05; done\necho 1 >&$DICOM_NODE_READY_FD\nexec sleep 60\n"
    )
    program.chmod(0o700)
    monkeypatch.setattr(supervisor, "sys", SimpleNamespace(executable=str(program)))
    return begin


def test_a_receiver_is_restarted_only_when_the_one_before_it_listens(slow_starter: Path) -> None:
    with tempfile.TemporaryFile() as lock:
        node = Supervisor(settings(receiver={"processes": 2}), None, lock.fileno())
        first, second = node.children[:2]
        try:
            first.start()
            second.start()
            node._to_restart = [second]
            node._restart_next()
            assert (first.is_ready(), second.ends_at) == (False, None)
            slow_starter.touch()
            wait_for(lambda: first.is_ready() and second.is_ready(), 30, "both listen")
            node._restart_next()
            assert second.ends_at is not None
        finally:
            for child in (first, second):
                assert child.process is not None
                child.process.kill()
                child.process.wait()


def test_nobody_waits_for_a_receiver_that_died_before_it_listened(slow_starter: Path) -> None:
    with tempfile.TemporaryFile() as lock:
        [child, *_] = children_of(settings(), None, lock.fileno())
        child.start()
        assert child.process is not None and not child.is_ready()
        child.process.kill()
        child.process.wait()
        wait_for(child.is_ready, 30, "its end is noticed")

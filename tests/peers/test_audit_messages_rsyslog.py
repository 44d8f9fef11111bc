"""Audit messages to a real rsyslogd over TLS with certificates on both sides, from a real node."""

import re
import threading
import time

import pytest

from config.settings import Settings
from dicom_node.gateways.audit_messages.forwarder import Forwarder
from dicom_node.gateways.audit_messages.syslog import NotTaken
from dicom_node.receiver.certificates import Authority
from storage import audit, forwarding
from tests.programs import free_port, wait_for
from tests.receiving import ct_slice
from tests.receiving import store as send
from tests.running import Node
from tests.storage_factory import Store
from tests.syslog_receivers import EVENT, ROWS, Rsyslog, invalid, rsyslog

pytestmark = pytest.mark.peer


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    with rsyslog(folder) as made:
        yield made


def forwarder(store: Store, repository: Rsyslog, at_once: int = 2000, **more: object) -> Forwarder:
    syslog = repository.settings(**{"from_the_beginning": True, "timeout_s": 5, **more})
    return Forwarder(
        Settings(data_dir=store.folder, storage={"database_url": store.url}, audit={"syslog": syslog}),
        store.database,
        at_once,
    )


def note(store: Store, *times: float) -> None:
    with store.database.transaction() as tx:
        for now in times:
            audit.append(tx, now, "node.started")


def rows(repository: Rsyslog) -> list[int]:
    """The rows of the starts that arrived, in their order."""
    return [int(ROWS.search(one)[1]) for one in repository.messages if EVENT.search(one)[1] == "110100"]


def test_everything_is_there_once_and_in_order_when_the_place_has_moved_on(store, repository):
    note(store, *range(500))
    made = forwarder(store, repository, at_once=200)
    while made.step(600):
        pass
    wait_for(lambda: len(rows(repository)) >= 500)
    assert rows(repository) == list(range(1, 501))


def test_the_longest_messages_arrive_whole(store, repository, tmp_path, shared):
    note(store, 1)
    wide = "&" * 5000
    with store.database.transaction() as tx:
        about = audit.Subject("1.2.3", "1.2", patient_id=wide)
        audit.append(tx, 2, "web.download", about, peer=audit.Peer(wide, wide), detail={"user": wide})
        audit.append(tx, 2, "association.rejected", peer=audit.Peer(wide, wide), detail={"reason": wide})
    made = forwarder(store, repository, byte_order_mark=True)
    made.step(3)
    wait_for(lambda: len(repository.messages) >= 3)
    assert invalid(repository.messages, tmp_path, shared / "data" / "audit-message.rnc") == ""
    assert max(map(len, repository.messages)) > 5000


def test_a_repository_that_is_killed_again_and_again_misses_nothing(store, repository):
    made = forwarder(store, repository, at_once=50)
    stop = threading.Event()
    thread = threading.Thread(target=made.run, args=(stop,))
    thread.start()
    try:
        for number in range(5):
            note(store, *range(number * 400, (number + 1) * 400))
            time.sleep(0.05)
            repository.stop(kill=True)
            repository.start()
        wait_for(lambda: place(store).number >= 2000, 60, "everything is told")
    finally:
        stop.set()
        thread.join()
    repository.stop()  # in order: what rsyslogd has read, it writes
    told = rows(repository)
    read_not_written = set(range(1, 2001)) - set(told)
    assert read_not_written == set() or max(read_not_written) <= max(told)
    first_seen = list(dict.fromkeys(told))
    assert first_seen == sorted(first_seen), "the order is kept"


def place(store: Store) -> forwarding.Place:
    with store.database.read() as tx:
        return forwarding.place(tx)


def test_nobody_but_the_repository_and_the_node_takes_part(store, repository, tmp_path):
    note(store, 1)
    stranger = Authority("stranger", time.time())
    strangers = stranger.write(tmp_path / "stranger.pem")
    with pytest.raises(NotTaken, match="not trusted"):
        forwarder(store, repository, tls_authorities=strangers).step(2)
    with pytest.raises(NotTaken):
        forwarder(store, repository, tls_certificate=None, tls_key=None).step(3)
    assert (place(store).number, repository.messages) == (0, [])
    forwarder(store, repository).step(4)
    wait_for(lambda: repository.messages)


def test_a_node_tells_its_start_its_images_and_its_stop(tmp_path, repository):
    variables = {
        "HOST": "127.0.0.1", "PORT": str(repository.port), "TLS_AUTHORITIES": str(repository.authorities),
        "TLS_CERTIFICATE": str(repository.certificate), "TLS_KEY": str(repository.key),
    }  # fmt: skip
    node = Node(
        tmp_path / "node", free_port(), **{f"DICOM_NODE_AUDIT__SYSLOG__{key}": text for key, text in variables.items()}
    )
    try:
        node.start()
        send(node, *(ct_slice(number, series_uid="1.2.826.0.1.77") for number in (1, 2, 3)))
        wait_for(lambda: [one for one in repository.messages if 'NumberOfInstances="3"' in one], 90)
        assert node.command("status")["audit_messages"]["error"] is None
    finally:
        node.stop()
    last = wait_for(lambda: [one for one in repository.messages if "110121" in one], 60)
    assert "Application Stop" in last[0]
    head = re.search(r"(\d+:[0-9a-f]{64})", repository.messages[-1])[1]
    noted = tmp_path / "noted"
    noted.write_text(repository.log.read_text())
    found = node.command("audit", "--verify", "--anchor", str(noted))
    assert (found["problems"], found["head"]) == ([], head)

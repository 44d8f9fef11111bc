"""Many instances and many broken associations; afterwards the receiver is as it was before.

20,000 instances and 2,000 aborted associations with NODE_FAULT_ROUNDS (`make faults`), a few hundred without;
NODE_SOAK_INSTANCES sets another number.
"""

import os
import statistics
import threading
import time
from pathlib import Path

import pytest
from pydicom.uid import generate_uid
from sqlalchemy import func, select

from storage import audit
from storage.folder import FolderStore
from storage.models import instances
from tests.attacker import ACCEPT, DATA, attacker, data_set, pdu, pdv, store_command
from tests.faults.test_attacks import Victim
from tests.programs import wait_for

ROUNDS = int(os.environ.get("NODE_FAULT_ROUNDS", "0"))
INSTANCES = int(os.environ.get("NODE_SOAK_INSTANCES", "20000" if ROUNDS else "800"))
ABORTED = INSTANCES // 10
SENDERS = 4
PER_SERIES = 100
SAMPLES = 40
GROWTH_MIB = 12.0
"""Of the resident memory over the second half of the run. What leaks with every instance leaks more than that."""


class Sender(threading.Thread):
    """Sends its share in series of a hundred slices, and breaks off one association for every ten instances."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.stored = 0
        self.problem = ""
        self._port = port

    def run(self) -> None:
        for _ in range(INSTANCES // SENDERS // PER_SERIES):
            series = generate_uid().encode()
            with attacker(self._port) as sender:
                if sender.associate() != ACCEPT:
                    self.problem = "association refused"
                    return
                for _ in range(PER_SERIES):
                    uid = generate_uid().encode()
                    status = sender.store(uid, data_set(uid, series=series))
                    if status != 0:
                        self.problem = f"status {status}"
                        return
                    self.stored += 1
            for broken in range(PER_SERIES * ABORTED // INSTANCES):
                break_off(self._port, broken)


def break_off(port: int, way: int) -> None:
    """An association that ends early: silently, with an A-ABORT, or before it was accepted."""
    with attacker(port) as sender:
        if way % 3 == 2:
            return
        sender.associate()
        sender.send(pdu(DATA, pdv(store_command(b"1.2.3.4.5"), 3)) + pdu(DATA, pdv(bytes(16000), 0)) * 5)
        if way % 3 == 1:
            sender.send(pdu(7, bytes(4)))


@pytest.mark.timeout(3000)
def test_after_many_instances_and_broken_associations_the_receiver_is_as_it_was(
    tmp_path: Path, figures: list[str]
) -> None:
    (tmp_path / "node").mkdir()
    victim = Victim(tmp_path / "node")
    try:
        _warm_up(victim)
        threads, descriptors, resident = _measures(victim)
        memory: list[float] = [resident]
        senders = [Sender(victim.port) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        for share in range(1, SAMPLES + 1):
            wait_for(lambda: _done(senders) >= INSTANCES * share / SAMPLES or _ended(senders), 1200)  # noqa: B023
            memory.append(victim.measures()[2])
        for sender in senders:
            sender.join(120)
            assert sender.problem == ""
        now = _settled(victim, threads, descriptors)
        assert now[0] <= threads and now[1] <= descriptors, f"{threads} threads, {descriptors} descriptors: now {now}"
        growth = _growth(memory[len(memory) // 2 :])
        assert growth < GROWTH_MIB, f"resident memory grows: {memory}"
        with victim.database.read() as tx:
            assert tx.scalar(select(func.count()).select_from(instances)) == _done(senders) + SENDERS
            assert audit.verify(tx) is None
            rows = {row.path: row.sha256 for row in tx.execute(select(instances.c.path, instances.c.sha256))}
        files = FolderStore(victim.folder / "var" / "files")
        assert {str(path.relative_to(files.root)) for path in victim.files()} == rows.keys(), "temporary files are left"
        for path, sha256 in rows.items():
            files.read_verified(path, sha256)
    finally:
        victim.stop()
    figures.append(
        f"soak: {_done(senders)} instances, {ABORTED} aborted associations; threads {threads} to {now[0]}, descriptors "
        f"{descriptors} to {now[1]}, resident MiB {resident:.0f} at first, {memory[len(memory) // 2]:.0f} half way, "
        f"{now[2]:.0f} at the end; growth over the second half {growth:.1f} MiB"
    )


def _warm_up(victim: Victim) -> None:
    """Load everything that is loaded once, and open as many simultaneous associations as the test will."""
    barrier = threading.Barrier(SENDERS)

    def one() -> None:
        with attacker(victim.port) as sender:
            assert sender.associate() == ACCEPT
            barrier.wait(30)
            uid = generate_uid().encode()
            assert sender.store(uid, data_set(uid, series=uid)) == 0

    threads = [threading.Thread(target=one) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steady: list[tuple[int, int]] = []
    while len(steady) < 10 or len(set(steady[-10:])) > 1:  # two seconds without a thread or a descriptor less
        steady.append(victim.measures()[:2])
        assert len(steady) < 300, "the first associations do not end"
        time.sleep(0.2)


def _settled(victim: Victim, threads: int, descriptors: int) -> tuple[int, int, float]:
    """Its measures when the last associations have ended, or after a minute at the latest."""
    deadline = time.monotonic() + 60
    while (now := _measures(victim))[0] > threads or now[1] > descriptors:
        if time.monotonic() > deadline:
            print(victim.descriptors())
            break
        time.sleep(0.2)
    return now


def _measures(victim: Victim) -> tuple[int, int, float]:
    """Threads; descriptors, except the pooled connections to the index, which are few and stay open; resident MiB."""
    threads, _, resident = victim.measures()
    return threads, sum("node.db" not in name for name in victim.descriptors()), resident


def _done(senders: list[Sender]) -> int:
    return sum(sender.stored for sender in senders)


def _ended(senders: list[Sender]) -> bool:
    return not any(sender.is_alive() for sender in senders)


def _growth(samples: list[float]) -> float:
    """The rise of the line through the samples from the first to the last."""
    slope, _ = statistics.linear_regression(range(len(samples)), samples)
    return slope * (len(samples) - 1)

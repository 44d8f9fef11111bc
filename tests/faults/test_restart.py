"""A node that is started at the moment when another node on its folder ends, or just before."""

import os
import signal
from pathlib import Path

from tests.faults.campaign import Node, Pacs, check, ct_series
from tests.programs import wait_for
from tests.zygote import Zygote


def test_a_node_started_beside_the_children_of_a_killed_one_waits_for_them_and_goes_on(
    zygote: Zygote, tmp_path: Path
) -> None:
    """SIGKILL to the supervisor alone leaves children that hold the port and drain; nothing ends them."""
    pacs = Pacs()
    node = Node(zygote, tmp_path, pacs.port)
    node.configure(slow="1.5")
    acknowledged: dict[str, str] = {}
    try:
        node.start()
        node.send(ct_series(), acknowledged)
        wait_for(lambda: node.rows("SELECT * FROM jobs WHERE state = 'RUNNING'"), 60, "an analysis is under way")
        supervisor, *children = node.processes()
        assert len(children) == 4
        os.kill(supervisor, signal.SIGKILL)
        node.start()
        node.send(ct_series(), acknowledged)
        assert not any(_lives(pid) for pid in children), "the former node's children are gone before this one works"
        node.settle()
        check(node, pacs, acknowledged)
        first = node.rows("SELECT attempts, interruptions FROM jobs WHERE id = 1")
        assert first == [{"attempts": 1, "interruptions": 0}], "it was finished by the worker that had it"
        node.end()
    finally:
        node.kill()
        pacs.stop()


def test_a_whole_tree_that_was_killed_leaves_its_port_free_at_once(zygote: Zygote, tmp_path: Path) -> None:
    pacs = Pacs()
    node = Node(zygote, tmp_path, pacs.port)
    acknowledged: dict[str, str] = {}
    try:
        node.start()
        for _ in range(3):
            node.send(ct_series(), acknowledged)  # connections that end with the node: the port is in TIME_WAIT
            node.kill()
            node.start()
        node.send(ct_series(), acknowledged)
        node.settle()
        check(node, pacs, acknowledged)
        node.end()
    finally:
        node.kill()
        pacs.stop()
    assert "cannot listen" not in node.log.read_text()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

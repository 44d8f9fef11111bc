"""A node whose files are in a bucket, and a bucket that is away, slow, or holds other bytes than it was given."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from dicom_node.cli.app import app
from tests.attacker import Attacker
from tests.faults.campaign import Node, Pacs, check, ct_series, send
from tests.programs import wait_for
from tests.s3 import S3
from tests.zygote import Zygote

NO_COPIES = {"DICOM_NODE_STORAGE__S3__CACHE_MB": "0"}


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    server = Pacs()
    yield server
    server.stop()


def started(zygote: Zygote, folder: Path, pacs: Pacs, s3: S3, **variables: str) -> Node:
    node = Node(zygote, folder, pacs.port, s3=s3, **variables)
    node.start()
    wait_for(lambda: node.listens, 60, "the node listens")
    return node


def command(node: Node, *arguments: str) -> Any:
    """What a `dicom-node` command says."""
    done = CliRunner().invoke(app, [*arguments, "--json"], env=node.variables)
    structlog.reset_defaults()  # the command's own stream is closed
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout.splitlines()[-1])


def handed_back(node: Node) -> bool:
    rows = node.rows("SELECT detail FROM audit WHERE event LIKE 'job.%'")
    return any("handed back" in str(row["detail"]) for row in rows)


def test_an_outage_costs_no_image_no_attempt_and_no_report_and_ends_by_itself(
    zygote: Zygote, pacs: Pacs, s3: S3, tmp_path: Path
) -> None:
    fetched_by_the_job = {
        **NO_COPIES,
        "DICOM_NODE_WORKER__READ_AHEAD_MB": "0",
        "DICOM_NODE_WORKER__LEASE_S": "60",  # a busy machine must not cost the attempt that is counted here
    }
    node = started(zygote, tmp_path, pacs, s3, **fetched_by_the_job, DICOM_NODE_COMPLETION__QUIET_S="4")
    acknowledged: dict[str, str] = {}
    try:
        processes = node.processes()
        node.send(ct_series(), acknowledged)
        s3.gate.shut()
        second = ct_series()
        sender = Attacker(node.port)
        sender.associate()
        uid = next(iter(second))
        assert sender.store(uid.encode(), second[uid]) == 0xA700
        sender.close()
        wait_for(lambda: handed_back(node), 60, "the job is handed back")
        assert not send(node.port, second, acknowledged)
        assert uid not in acknowledged
        said = command(node, "status")["node"]
        assert (said["runs"], said["accepts"]) == (True, False)
        assert "object store" in said["why_not"] and "cannot be reached" in said["why_not"]
        s3.gate.open()
        node.send(second, acknowledged)
        node.settle()
        counts = check(node, pacs, acknowledged)
        assert counts["series"] == 2
        assert {row["attempts"] for row in node.rows("SELECT attempts FROM jobs")} == {1}
        assert node.processes() == processes, "no process had to be started again"
        assert command(node, "status")["node"]["accepts"]
        node.end()
    finally:
        node.kill()


def test_a_result_waits_for_the_bucket_and_is_then_sent(zygote: Zygote, pacs: Pacs, s3: S3, tmp_path: Path) -> None:
    refuses = [True]
    away = Pacs(answer=lambda _: 0xA700 if refuses[0] else 0)
    node = started(zygote, tmp_path, away, s3, **NO_COPIES)
    acknowledged: dict[str, str] = {}
    try:
        node.send(ct_series(), acknowledged)
        wait_for(lambda: node.rows("SELECT 1 FROM deliveries WHERE attempts > 0"), 60, "it is sent, and refused")
        s3.gate.shut()
        away_in_words = "SELECT 1 FROM deliveries WHERE error LIKE '%cannot be reached%' AND state = 'PENDING'"
        wait_for(lambda: node.rows(away_in_words), 60, "the delivery says what it waits for")
        refuses[0] = False
        s3.gate.open()
        node.settle()
        check(node, away, acknowledged)
        node.end()
    finally:
        node.kill()
        away.stop()


def test_other_bytes_in_the_bucket_are_found_and_nothing_is_reported_on_them(
    zygote: Zygote, pacs: Pacs, s3: S3, tmp_path: Path
) -> None:
    quiet = {"DICOM_NODE_COMPLETION__QUIET_S": "1.5", "DICOM_NODE_WORKER__MAX_ATTEMPTS": "2"}
    node = started(zygote, tmp_path, pacs, s3, **NO_COPIES, **quiet)
    acknowledged: dict[str, str] = {}
    series = ct_series()
    try:
        node.send(series, acknowledged)
        (row,) = node.rows("SELECT sop_instance_uid AS uid, path FROM instances LIMIT 1")
        data = s3.read(row["path"])
        s3.write(row["path"], data[:-1] + bytes([data[-1] ^ 1]))
        failed = "SELECT failure_reason FROM jobs WHERE state = 'FAILED'"
        wait_for(lambda: node.rows(failed), 60, "the job fails")
        assert "SHA-256 differs" in node.rows(failed)[0]["failure_reason"]
        assert pacs.received == []
        del acknowledged[row["uid"]]
        node.send(series, acknowledged)  # the slice comes again and takes the place of the bad one
        path = node.rows(f"SELECT path FROM instances WHERE sop_instance_uid = '{row['uid']}'")[0]["path"]
        assert path != row["path"] and s3.read(path) == data
        command(node, "retry", "--job", "1")
        node.settle()
        check(node, pacs, acknowledged)
        node.end()
    finally:
        node.kill()


def test_a_slow_answer_is_waited_for_and_none_at_all_is_no_success(
    zygote: Zygote, pacs: Pacs, s3: S3, tmp_path: Path
) -> None:
    node = started(
        zygote, tmp_path, pacs, s3, DICOM_NODE_STORAGE__S3__TIMEOUT_S="3", DICOM_NODE_COMPLETION__QUIET_S="4"
    )
    acknowledged: dict[str, str] = {}
    first = ct_series()
    uid = next(iter(first))
    try:
        s3.gate.silence()
        threading.Timer(0.5, s3.gate.open).start()
        assert send(node.port, {uid: first[uid]}, acknowledged) and uid in acknowledged
        s3.gate.silence()
        assert not send(node.port, first, acknowledged) and acknowledged.keys() == {uid}
        assert node.listens
        s3.gate.open()
        node.send(first, acknowledged)
        node.settle()
        check(node, pacs, acknowledged)
        node.end()
    finally:
        node.kill()

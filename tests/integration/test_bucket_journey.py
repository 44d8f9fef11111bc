"""The whole node with its files in a bucket: CT in at one side, report out at the other; and commands about files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydicom import dcmread
from typer.testing import CliRunner

from config.settings import Settings
from dicom_node.cli.app import app
from dicom_node.demo.pacs import Pacs
from dicom_node.runtime.startup import prepare
from dicom_node.scu import push
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from tests import receiving
from tests.programs import wait_for
from tests.running import Node, running
from tests.s3 import KEYS, S3


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    server = Pacs(tmp_path / "pacs", ae_title="PACS")
    with server:
        yield server


class Commands:
    """Commands of a node that is stopped."""

    def __init__(self, data: Path, s3: S3) -> None:
        self._environment = {"DICOM_NODE_DATA_DIR": str(data), **s3.variables()}

    def run(self, *arguments: str, status: int = 0) -> str:
        """What a command says that ends with this status."""
        done = CliRunner().invoke(app, list(arguments), env=self._environment)
        structlog.reset_defaults()  # the command's own stream is closed
        assert done.exit_code == status, (done.output, done.exception)
        return " ".join(f"{done.output} {done.exception or ''}".split())

    def json(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """The same with --json."""
        found: dict[str, Any] = json.loads(self.run(*arguments, "--json", status=status))
        return found


def test_a_series_goes_in_and_its_report_comes_out_and_all_files_are_in_the_bucket(
    pacs: Pacs, s3: S3, tmp_path: Path
) -> None:
    write_series(make_phantom(12, slices=40, size=256, lesions="none"), tmp_path / "series")
    data, sent = tmp_path / "node", sorted((tmp_path / "series").iterdir())
    node = Node(data, pacs.port, **s3.variables())
    node.log = tmp_path / "log"
    with running(node):
        result = push.send(tmp_path / "series", "127.0.0.1", node.port, node.ae_title, "SENDER")
        assert (result.stored, result.failed) == (len(sent), 0), result.detail
        assert len(s3.stored()) == len(sent), "each is in the bucket when it is acknowledged"
        (report,) = wait_for(lambda: [p for p in pacs.received() if dcmread(p).Modality == "SR"], 200, "the report")
        assert node.stop() == 0
    uid = str(dcmread(report).SOPInstanceUID).encode()
    assert any(uid in s3.read(path) for path in s3.stored())
    assert not (data / "files").exists()
    shown = Commands(data, s3).run("config", "show")
    assert s3.url in shown and not any(key in shown + node.log.read_text() for key in KEYS.values())


def test_commands_about_files_work_on_a_bucket_or_say_why_not(s3: S3, tmp_path: Path) -> None:
    storage = {"low_disk_mb": 1, "bucket": s3.url, "s3": {"endpoint": s3.endpoint}}
    data, commands = tmp_path / "node", Commands(tmp_path / "node", s3)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in KEYS.items():
            environment.setenv(name, value)
        prepare(Settings(data_dir=data, receiver={"port": 0}, storage=storage))
        with receiving.Node(data, storage=storage) as node:
            slices = [receiving.ct_slice(number) for number in range(4)]
            assert receiving.store(node, *slices) == [(0, "")] * 4
            assert receiving.store(node, slices[0]) == [(0, "")], "a resend"
            s3.gate.shut()
            assert receiving.store(node, receiving.ct_slice(5)) == [(0xA700, "object store not available")]
            s3.gate.open()
    assert len(s3.stored()) == 4
    held = commands.json("index", "status")
    assert (held["problem"], held["stored_files"], held["unknown_files"]) == (None, 4, 0)
    for path in data.glob("node.db*"):  # the index is lost: the files tell what it held
        path.unlink()
    assert "missing or empty" in commands.run("index", "status", status=1)
    path = s3.stored()[0]
    s3.write(path, s3.read(path)[:2000])
    done = commands.json("index", "adopt")
    assert (done["adopted"], len(done["unreadable"])) == (3, 1)
    assert commands.json("index", "status")["unreadable_files"] == 1
    orphan = f"2026/01/01/{'0' * 32}.dcm"
    s3.write(orphan, b"nobody's")
    assert commands.json("index", "sweep")["files"] == []  # it is young
    s3.gate.shut()
    assert "cannot be reached" in commands.run("index", "status", status=1)

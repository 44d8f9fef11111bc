"""Storage commitment and read-back against Debian's Orthanc, which answers on an association of its own."""

import time
from pathlib import Path

import pytest

from dicom_node.delivery.commitment import Asking
from tests.outbox import destination, encoded, make_node, sending
from tests.programs import free_port, orthanc, wait_for

pytestmark = pytest.mark.peer


def test_orthanc_commits_on_its_own_association_and_holds_our_bytes(tmp_path: Path) -> None:
    port = free_port()
    with orthanc(tmp_path / "orthanc", {"NODE_SC": port}) as server:
        node = make_node(
            tmp_path / "node",
            destination(server.port, ae_title="ORTHANC", commitment="request"),
            sender={"commitment": {"port": port, "ae_title": "NODE_SC", "resend_s": 0.05}, "response_timeout_s": 10.0},
        )
        objects = node.add_result(time.time(), ["report", "segmentation", "summary"])
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": "COMMITTED"})
        identifiers = server.call("/instances")
        assert len(identifiers) == len(objects)
        (tmp_path / "back").mkdir()
        for identifier in identifiers:
            back = tmp_path / "back" / f"{identifier}.dcm"
            back.write_bytes(server.file(identifier))
            assert encoded(back) in [encoded(path) for path in node.files.root.rglob("*.dcm")]
    (row,) = node.audited("delivery.committed")
    assert row["detail"]["how"] == "storage-commitment"  # type: ignore[index]


def test_orthanc_that_lost_a_report_before_it_is_asked_gets_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with orthanc(tmp_path / "orthanc") as server:
        node = make_node(
            tmp_path / "node",
            destination(server.port, ae_title="ORTHANC"),
            sender={"response_timeout_s": 10.0},
        )
        node.add_result(time.time())
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": "SENT"})
        node.add_result(time.time())
        # Another result, sent by a node that was told to verify; its report is deleted as soon as Orthanc has it.
        asking = destination(server.port, ae_title="ORTHANC", commitment="query")
        node.settings = node.settings.model_copy(update={"destinations": (asking,)})
        deleted: list[str] = []
        before = set(server.call("/instances"))
        settle = Asking.settle_one

        def lose_first(*arguments: object) -> bool:
            for identifier in set(server.call("/instances")) - before:
                if not deleted:
                    deleted.append(identifier)
                    server.call(f"/instances/{identifier}", method="DELETE")
            return settle(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Asking, "settle_one", lose_first)
        with sending(node):
            wait_for(lambda: "COMMITTED" in {row.state for row in node.deliveries()})
        assert len(deleted) == 1
        assert len(server.call("/instances")) == 2

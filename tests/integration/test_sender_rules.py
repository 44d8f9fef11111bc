"""What is sent where: fallbacks by what a destination accepts, and what must stay on this machine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt

from config.settings import Destination, ModelSettings
from storage import audit
from storage.jobs import ModelRef
from tests.outbox import (
    COMPREHENSIVE_3D_SR,
    COMPREHENSIVE_SR,
    CT,
    MODEL,
    SECONDARY_CAPTURE,
    SEGMENTATION,
    destination,
    make_node,
    sending,
)
from tests.programs import wait_for

DEMONSTRATION = ModelRef("demonstration", "0.9", "e" * 64)
ELSEWHERE = Destination(name="pacs", ae_title="PACS", host="192.0.2.1", port=104)
"""An address that is reserved for documentation: nobody is there."""


@contextmanager
def picky_pacs(*classes: str) -> Iterator[tuple[int, list[str]]]:
    """A Storage SCP for these classes in implicit VR. Yields its port and the UIDs that it stored."""
    stored: list[str] = []

    def store(event: evt.Event) -> int:
        stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    entity = AE(ae_title="STORESCP")
    for uid in classes:
        entity.add_supported_context(uid, ImplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield int(server.server_address[1]), stored
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("accepted", "arrives", "state"),
    [
        ((COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, SEGMENTATION), ["report", "segmentation"], "SENT"),
        ((COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE, SEGMENTATION), ["report", "segmentation", "summary"], "SENT"),
        ((COMPREHENSIVE_SR, SEGMENTATION), ["report-comprehensive", "segmentation"], "SENT"),
        ((COMPREHENSIVE_3D_SR,), ["report"], "SENT"),
        ((COMPREHENSIVE_SR,), ["report-comprehensive"], "SENT"),
        ((SECONDARY_CAPTURE,), ["summary"], "SENT"),
        ((SEGMENTATION,), ["segmentation"], "FAILED"),
        ((CT,), [], "FAILED"),
    ],
)
def test_a_destination_gets_the_first_report_that_it_accepts(
    tmp_path: Path, accepted: tuple[str, ...], arrives: list[str], state: str
) -> None:
    with picky_pacs(*accepted) as (port, stored):
        node = make_node(tmp_path, destination(port), sender={"max_permanent_failures": 2})
        objects = node.add_result(time.time(), ["report", "report-comprehensive", "segmentation", "summary"])
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": state})
    kind_of = {o.SOPInstanceUID: kind for kind, o in objects.items()}
    assert sorted(kind_of[uid] for uid in stored) == sorted(arrives)
    row = node.deliveries()[0]
    if SEGMENTATION not in accepted and state == "SENT":
        assert "segmentation" in row.warning
    if COMPREHENSIVE_3D_SR not in accepted and state == "SENT":
        with node.database.read() as tx:
            (entry,) = audit.search(tx, event="delivery.sent")
        assert f"the result is told by: {arrives[0]}" in entry["detail"]["warning"]["text"]


def test_a_demonstration_result_does_not_leave_this_machine(tmp_path: Path) -> None:
    node = make_node(tmp_path, ELSEWHERE, sender={"connect_timeout_s": 0.2})
    node.add_result(time.time(), model=DEMONSTRATION)
    with sending(node):
        wait_for(lambda: node.states() == {"pacs": "FAILED"})
    row = node.deliveries()[0]
    assert row.attempts == 1
    assert "demonstration" in row.error


@pytest.mark.parametrize(("model", "allowed"), [(DEMONSTRATION, True), (MODEL, False)])
def test_other_results_and_allowed_ones_do(tmp_path: Path, model: ModelRef, allowed: bool) -> None:
    node = make_node(
        tmp_path, ELSEWHERE, sender={"connect_timeout_s": 0.2}, model=ModelSettings(allow_demonstration_model=allowed)
    )
    node.add_result(time.time(), model=model)
    with sending(node):
        wait_for(lambda: node.deliveries()[0].attempts >= 2)
    assert "no connection" in node.deliveries()[0].error

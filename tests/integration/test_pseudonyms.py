"""An index that names no patients: the key finds one all the same, and PACS are asked with the real ID."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydicom import dcmread

from config.settings import Settings
from dicom_node.completion.closing import Completion
from dicom_node.completion.rule import PACS_COUNT
from dicom_node.demo import pacs as pacs_module
from dicom_node.demo.pacs import Pacs
from storage import series
from storage.arrival import IndexedHeader
from storage.pseudonyms import Pseudonyms
from storage.series import SeriesRecord
from tests.outbox import MODELS, ct_series, destination, write_all
from tests.programs import wait_for
from tests.receiving import BIRTH_DATE, NAME, PATIENT_ID, Node, ct_slice, store

KEY = "a key of enough characters"


def test_index_and_audit_trail_hold_nothing_that_names_the_patient(tmp_path: Path) -> None:
    sent = ct_slice()
    sent.AccessionNumber = "ACCESSION-4711"
    with Node(tmp_path, storage={"pseudonym_key": KEY, "low_disk_mb": 1}) as node:
        assert store(node, sent) == [(0x0000, "")]
        (kept,) = node.files.root.rglob("*.dcm")
        assert dcmread(kept).PatientID == PATIENT_ID
    index = b"".join(path.read_bytes() for path in tmp_path.glob("node.db*"))
    for planted in (NAME, "Planted", PATIENT_ID, BIRTH_DATE, "ACCESSION-4711"):
        assert planted.encode() not in index
    environment = {**os.environ, "DICOM_NODE_DATA_DIR": str(tmp_path), "DICOM_NODE_STORAGE__PSEUDONYM_KEY": KEY}
    asked = [sys.executable, "-m", "dicom_node", "audit", "--patient", PATIENT_ID, "--json"]
    found = json.loads(subprocess.run(asked, env=environment, capture_output=True, check=True).stdout)
    assert "instance.received" in {row["event"] for row in found}


def test_the_same_id_gives_the_same_pseudonym_and_no_id_gives_none() -> None:
    one, other = Pseudonyms(KEY), Pseudonyms(KEY + "!")
    assert one.of("4711") == one.of(" 4711 ") != other.of("4711")
    assert one.of("") == ""
    assert one.header(IndexedHeader(patient_id="4711", modality="CT")).modality == "CT"
    plain = IndexedHeader(patient_id="4711", patient_name="A^B")
    assert Pseudonyms("").header(plain) == plain


def test_a_pacs_that_knows_patients_only_is_asked_with_the_id_from_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacs_module, "QUERY_MODELS", [m for m in pacs_module.QUERY_MODELS if ".1.2.1." in str(m)])
    slices = ct_series(5)
    write_all(slices, tmp_path / "pacs")
    with Pacs(tmp_path / "pacs") as pacs:
        pacs.load(tmp_path / "pacs")
        settings = {
            "storage": {"pseudonym_key": KEY, "low_disk_mb": 1},
            "destinations": [destination(pacs.port, "pacs", "DEMO_PACS")],
            "completion": {"query_destination": "pacs", "settle_s": 0.1, "quiet_s": 60},
        }
        with Node(tmp_path / "node", **settings) as node:
            assert store(node, *slices[:3]) == [(0x0000, "")] * 3
            completion = Completion(node.settings, node.database, node.files)

            def closed() -> bool:
                completion.close_due_series(MODELS, time.time())
                return series_of(node).state == "CLOSED"

            wait_for(closed, 30, "the series closes")
            completion.stop()
            record = series_of(node)
    assert (record.completeness, record.instance_count) == (PACS_COUNT, 5)
    assert record.patient_id == Pseudonyms(KEY).of("TEST")


def series_of(node: Node) -> SeriesRecord:
    with node.database.read() as tx:
        (record,) = series.list_series(tx)
    return record


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="16 characters"):
        Settings(storage={"pseudonym_key": "short"})

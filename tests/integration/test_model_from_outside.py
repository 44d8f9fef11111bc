"""A third party's model in a worker: what becomes of its job, and of the next one."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import ReportSettings
from inference.models.kinds import kinds
from inference.models.registry import make_active
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from tests.integration.test_replay import take_in
from tests.storage_factory import Store

CARD = """
kind = "{kind}"
name = "{kind}"
version = "1.0"
title = "A model of the tests"
source = "tests.hostile_models"
licence = "that of this repository"
intended_use = "a test"
[[codes]]
value = "118565006"
scheme = "SCT"
meaning = "Volume"
"""
KINDS = {"crashes": "reads_address_0", "works": "works"}


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package whose models these are, as pip leaves it."""
    folder = tmp_path / "site-packages"
    metadata = folder / "hostile-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    entries = "".join(f"{kind} = tests.hostile_models:{entry}\n" for kind, entry in KINDS.items())
    (metadata / "entry_points.txt").write_text(f"[dicom_node.models]\n{entries}")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    kinds.cache_clear()
    yield
    kinds.cache_clear()


def use(store: Store, kind: str) -> None:
    """Make a model of this kind the one that the node uses."""
    folder = store.folder / "models" / kind
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(CARD.format(kind=kind))
    make_active(store.folder / "models", kind)


def test_a_model_that_crashes_ends_its_job_with_a_reason_and_the_next_series_is_analysed(tmp_path: Path) -> None:
    report = ReportSettings(report_not_analysed=True, segmentation=False, summary=False)
    with Store(tmp_path / "node", f"sqlite:///{tmp_path}/node/node.db") as store:
        for seed, kind in enumerate(KINDS):
            use(store, kind)
            paths = write_series(make_phantom(seed + 11, slices=40, size=256, lesions="none"), tmp_path / kind)
            take_in(store, paths, time.time() - 60, report)
        assert store.states("jobs") == ["REPORTED", "REPORTED"]
        crashed, worked = store.rows("SELECT outcome, reason_code, reason_text, versions FROM results ORDER BY id")
        objects = store.rows("SELECT path FROM result_objects WHERE kind = 'report' ORDER BY id")
        refusal, reported = (store.files.absolute(str(row["path"])).read_bytes() for row in objects)
    assert (crashed["outcome"], crashed["reason_code"]) == ("NOT_ANALYSED", "MODEL_CRASHED")
    assert "SIGSEGV" in str(crashed["reason_text"]) and b"SIGSEGV" in refusal
    assert (worked["outcome"], worked["reason_code"]) == ("ANALYSED", None)
    assert '"hostile": "1.0"' in str(worked["versions"])
    assert b"milliliter" in reported

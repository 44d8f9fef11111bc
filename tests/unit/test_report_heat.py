"""The map of what drove the model: where it lies, when there is one, and that it is sent nowhere."""

from datetime import UTC, datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from config.settings import ReportSettings
from dicom_node.analysis.result_objects import _kinds
from dicom_node.report.context import ReportContext
from dicom_node.report.heat import STEP, reduced
from dicom_node.report.objects import build_all
from dicom_node.report.sources import read_sources
from storage import deliveries, jobs
from storage.object_kinds import ObjectKind
from storage.results import NewObject
from tests.factories import Grid, finding_on, volume_of, write_series
from tests.storage_factory import QUIET_S, Store, analysed

GRID = Grid(shape=(6, 38, 42))  # rows and columns that are no multiples of STEP


def built(folder: Path, heat: np.ndarray):
    write_series(folder, GRID)
    volume = volume_of(folder)
    context = ReportContext(created_at=datetime(2026, 1, 2, tzinfo=UTC))
    kinds = [ObjectKind.REPORT, ObjectKind.HEAT]
    return volume, dict(build_all(finding_on(volume, heat=heat), volume, read_sources(volume), context, kinds))


def test_the_map_is_a_fractional_segmentation_that_lies_on_the_images(tmp_path: Path) -> None:
    heat = np.zeros(GRID.shape, np.uint8)
    heat[2:4, 10:30, 5:25] = np.linspace(0, 255, 20).astype(np.uint8)
    volume, objects = built(tmp_path, heat)
    seg = hd.seg.Segmentation.from_dataset(objects[ObjectKind.HEAT])
    assert seg.segmentation_type == hd.seg.SegmentationTypeValues.FRACTIONAL
    assert np.array_equal(seg.pixel_array, reduced(heat)[2:4])
    frame = seg.PerFrameFunctionalGroupsSequence[0]
    source = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == volume.slices[2].sop_instance_uid
    # The centre of the first block of STEP x STEP pixels.
    centre = (volume.affine @ [(STEP - 1) / 2, (STEP - 1) / 2, 2, 1])[:3]
    assert [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient] == pytest.approx(centre.tolist())
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(v) for v in measures.PixelSpacing] == [GRID.spacing_mm[1] * STEP, GRID.spacing_mm[2] * STEP]


def test_a_cold_map_makes_no_object(tmp_path: Path) -> None:
    _, objects = built(tmp_path, np.zeros(GRID.shape, np.uint8))
    assert list(objects) == [ObjectKind.REPORT]


def test_the_map_is_kept_only_if_a_site_asks_for_it() -> None:
    assert ObjectKind.HEAT not in _kinds(ReportSettings())
    assert ObjectKind.HEAT in _kinds(ReportSettings(heat=True))


def test_the_map_goes_to_no_destination(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.receive(1, now=0)
        store.close_due(QUIET_S)
        job = store.claim(QUIET_S)
        kept = NewObject(ObjectKind.HEAT, "2.25.7", "1.2", "2.25.8", store.files.write_durably([b"heat"]))
        with store.database.transaction() as tx:
            jobs.finish(tx, job.job_id, job.fence, 31.0, analysed(), [store.report(), kept], ["pacs"])
        with store.database.transaction() as tx:
            [claimed] = deliveries.claim(tx, "pacs", 32.0, 60.0)
        assert [item.kind for item in claimed.objects] == [ObjectKind.REPORT]

"""A picture shows why a series was not analysed, if its pixels are the reason."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from config.reasons import ReasonCode, Refusal
from config.settings import ReportSettings, Settings
from dicom_node.analysis.analyse import Analysis
from dicom_node.analysis.result_objects import report_objects
from dicom_node.report.refusal_page import refused_anatomy
from inference.errors import Evidence
from inference.volume.ct_volume import CTVolume
from tests.factories import model, volume_of, write_series

REFUSAL = Refusal(ReasonCode.CROP_IMPLAUSIBLE, "The network saw lung far from the lungs.")


@pytest.fixture
def volume(tmp_path: Path) -> CTVolume:
    write_series(tmp_path / "series")
    return volume_of(tmp_path / "series")


def objects(volume: CTVolume, evidence: Evidence | None, *, summary: bool = True) -> list[Dataset]:
    settings = Settings(report=ReportSettings(report_not_analysed=True, summary=summary))
    analysis = Analysis(None, REFUSAL, volume, evidence=evidence)
    paths = [one.path for one in volume.slices]
    return [dcmread(io.BytesIO(one.part10)) for one in report_objects(analysis, paths, model(), settings).objects]


def test_a_reason_in_the_pixels_has_a_picture_if_the_site_wants_summaries(volume: CTVolume) -> None:
    assert [one.Modality for one in objects(volume, Evidence())] == ["SR", "OT"]
    assert [one.Modality for one in objects(volume, None)] == ["SR"]
    assert [one.Modality for one in objects(volume, Evidence(), summary=False)] == ["SR"]


def test_the_picture_shows_the_frame_and_refers_to_the_slice(volume: CTVolume) -> None:
    rows, columns = volume.hu.shape[1:]
    whole = slice(0, rows), slice(0, columns)
    report, plain = objects(volume, Evidence(z=3))
    _, framed = objects(volume, Evidence(z=3, box=whole))
    assert framed.SeriesDescription.endswith("not analysed, RESEARCH, not for diagnosis")
    assert framed.SOPInstanceUID != report.SOPInstanceUID
    [source] = framed.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == volume.slices[3].sop_instance_uid
    changed = (framed.pixel_array != plain.pixel_array).any(axis=2)
    assert (framed.pixel_array[changed] == 240).mean() > 0.5 and changed[:, 316:].sum() == changed.sum()


def test_planes_go_through_what_the_network_took_for_lung(volume: CTVolume) -> None:
    lungs, suspect = np.zeros(volume.hu.shape, bool), np.zeros(volume.hu.shape, bool)
    lungs[:, 10:30, 10:30], suspect[2, 5, 6] = True, True
    anatomy = refused_anatomy(Evidence(z=2, lungs=lungs, suspect=suspect), volume)
    assert anatomy.focus == (2, 5, 6)
    framed = refused_anatomy(Evidence(z=2, box=(slice(0, 9), slice(0, 9)), lungs=lungs, suspect=suspect), volume)
    assert framed.focus[0] == 2 and framed.lungs[framed.focus]
    upside_down = dataclasses.replace(volume, affine=volume.affine @ np.diag([1.0, 1.0, -1.0, 1.0]))
    assert refused_anatomy(Evidence(z=2, suspect=suspect), upside_down).focus[0] == len(lungs) - 3

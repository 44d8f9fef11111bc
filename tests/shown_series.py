"""Series in an index as the node stores them, with real files and a real segmentation, for the tests of the pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom

from dicom_node.report.context import ReportContext
from dicom_node.report.frame import to_part10
from dicom_node.report.objects import build_all
from dicom_node.report.sources import read_sources
from storage import jobs, recording
from storage.arrival import Arrival, IndexedHeader
from storage.object_kinds import ObjectKind
from storage.results import NewObject
from tests.factories import Grid, finding_on, volume_of, write_series
from tests.storage_factory import QUIET_S, Store, analysed

GRID = Grid(shape=(9, 36, 44), spacing_mm=(3.0, 0.8, 0.7))


@dataclass(frozen=True)
class Shown:
    """One series in an index. folder: its files as they were sent, by height."""

    series_pk: int
    folder: Path
    result_id: int = 0


def store_files(store: Store, paths: Sequence[Path], now: float = 0.0, **header: str) -> int:
    """Store these instances as the receiver does. Returns the number of their series."""
    arrivals = [_arrival(store, path, header) for path in paths]
    with store.database.transaction() as tx:
        recording.record_instances(tx, arrivals, now, QUIET_S)
    uid = arrivals[0].series_instance_uid
    return int(str(store.rows("SELECT id FROM series WHERE series_instance_uid = :uid", uid=uid)[0]["id"]))


def _arrival(store: Store, path: Path, header: dict[str, str]) -> Arrival:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    about = IndexedHeader(
        **{
            "instance_number": str(dataset.get("InstanceNumber", "")),
            "patient_id": "4711",
            "patient_name": "Doe^Jane",
            "modality": "CT",
            "series_description": "Thorax",
        }
        | header
    )
    return Arrival(
        dataset.SOPInstanceUID,
        dataset.SOPClassUID,
        dataset.SeriesInstanceUID,
        dataset.StudyInstanceUID,
        dataset.file_meta.TransferSyntaxUID,
        "CT",
        "NODE",
        "127.0.0.1",
        store.files.write_durably([path.read_bytes()]),
        about,
    )


def reported(store: Store, folder: Path, grid: Grid = GRID, probability: float = 0.9, **header: str) -> Shown:
    """A phantom series that was received, closed, analysed and reported, with its objects."""
    write_series(folder, grid)
    series_pk = store_files(store, sorted(folder.iterdir()), **header)
    store.close_due(QUIET_S)
    job = store.claim(QUIET_S)
    assert job is not None
    objects = [_stored(store, kind, dataset) for kind, dataset in _objects(folder, probability)]
    with store.database.transaction() as tx:
        result_id = jobs.finish(tx, job.job_id, job.fence, 40.0, analysed(probability), objects, ["pacs"])
    return Shown(series_pk, folder, result_id)


def _objects(folder: Path, probability: float):
    volume = volume_of(folder)
    localised = np.zeros(volume.hu.shape, dtype=bool)
    localised[4:6, 12:20, 8:15] = True
    finding = finding_on(volume, probability, localisation=localised)
    context = ReportContext(created_at=datetime(2026, 1, 2, tzinfo=UTC))
    kinds = [ObjectKind.REPORT, ObjectKind.SEGMENTATION, ObjectKind.SUMMARY]
    return build_all(finding, volume, read_sources(volume), context, kinds)


def _stored(store: Store, kind: ObjectKind, dataset: pydicom.Dataset) -> NewObject:
    file = store.files.write_durably([to_part10(dataset)])
    return NewObject(kind, dataset.SOPInstanceUID, dataset.SOPClassUID, dataset.SeriesInstanceUID, file)

"""Series in an index as the node stores them, with real files and a real segmentation, for the tests of the pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from dicom_node.report.context import ReportContext
from dicom_node.report.frame import to_part10
from dicom_node.report.objects import build_all
from dicom_node.report.sources import read_sources
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series as write_phantom
from inference.volume.ct_volume import CTVolume
from inference.volume.load import load
from storage import jobs, recording
from storage.arrival import Arrival, IndexedHeader
from storage.jobs import ClaimedJob
from storage.object_kinds import ObjectKind
from storage.results import NewObject
from tests.factories import Grid, finding_on, volume_of, write_series
from tests.storage_factory import QUIET_S, Store, analysed, not_analysed

GRID = Grid(shape=(9, 36, 44), spacing_mm=(3.0, 0.8, 0.7))


PHANTOM = {"patient_id": "PHANTOM-11", "patient_name": "Phantom^Eleven", "series_description": "Chest 1 mm lung"}


@dataclass(frozen=True)
class Shown:
    """One series in an index. folder: its files as they were sent, by height."""

    series_pk: int
    folder: Path
    result_id: int = 0


def store_files(store: Store, paths: Sequence[Path], now: float = 0.0, **header: str) -> int:
    """Store these instances as the receiver does. Returns the number of their series."""
    arrivals = [arrival_of(store, path, header) for path in paths]
    with store.database.transaction() as tx:
        recording.record_instances(tx, arrivals, now, QUIET_S)
    uid = arrivals[0].series_instance_uid
    return int(str(store.rows("SELECT id FROM series WHERE series_instance_uid = :uid", uid=uid)[0]["id"]))


def arrival_of(store: Store, path: Path, header: dict[str, str]) -> Arrival:
    """What the receiver records of a file; the file is stored."""
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
    """A series of boxes that was received, closed, analysed and reported, with its objects."""
    write_series(folder, grid)
    series_pk = store_files(store, sorted(folder.iterdir()), **header)
    localised = np.zeros(grid.shape, dtype=bool)
    localised[4:6, 12:20, 8:15] = True
    return Shown(series_pk, folder, report(store, volume_of(folder), probability, localisation=localised))


def phantom_reported(store: Store, folder: Path, slices: int = 24, size: int = 128, now: float = 0.0) -> Shown:
    """A phantom with lesions, reported with its known truth as the segments. now: Unix seconds of its arrival."""
    phantom = make_phantom(11, slices=slices, size=size, lesions="mixed")
    paths = write_phantom(phantom, folder)
    series_pk = store_files(store, paths, now, **PHANTOM)
    found = {"lung_mask": phantom.lung_mask, "localisation": phantom.lesion_mask}
    return Shown(series_pk, folder, report(store, load(paths), 0.93, now, **found))


def report(store: Store, volume: CTVolume, probability: float, now: float = 0.0, **found: Any) -> int:
    """Close the series that is due, and do what the worker does with this verdict. Returns the result's id."""
    store.close_due(now + QUIET_S)
    job = claimed(store, volume.series_instance_uid, now + QUIET_S)
    context = ReportContext(created_at=datetime(2026, 1, 2, tzinfo=UTC))
    kinds = [ObjectKind.REPORT, ObjectKind.SEGMENTATION, ObjectKind.SUMMARY, ObjectKind.HEAT]
    built = build_all(finding_on(volume, probability, **found), volume, read_sources(volume), context, kinds)
    objects = [_stored(store, kind, dataset) for kind, dataset in built]
    with store.database.transaction() as tx:
        return jobs.finish(tx, job.job_id, job.fence, now + 40.0, analysed(probability), objects, ["pacs"])


def _stored(store: Store, kind: ObjectKind, dataset: pydicom.Dataset) -> NewObject:
    file = store.files.write_durably([to_part10(dataset)])
    return NewObject(kind, dataset.SOPInstanceUID, dataset.SOPClassUID, dataset.SeriesInstanceUID, file)


def refuse(store: Store, series_uid: str, code: str, sentence: str, now: float) -> None:
    """Let the job of a series end with a reason."""
    job = claimed(store, series_uid, now)
    with store.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, now + 10, not_analysed(code, sentence), [], [])


def claimed(store: Store, series_uid: str, now: float) -> ClaimedJob:
    """The job of a series; those of others that come before it stay claimed."""
    job = store.claim(now)
    while job is not None and job.series_instance_uid != series_uid:
        job = store.claim(now)
    assert job is not None
    return job

"""Results of one series in an index, with their real reports, that wait for destinations which are no PACS."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from config.reasons import Refusal
from config.settings import AnyDestination, Settings
from dicom_node.analysis.content import content_of
from dicom_node.gateways.reading import read_reported
from dicom_node.gateways.reported import ReportedResult
from dicom_node.report.context import ReportContext
from dicom_node.report.frame import to_part10
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.segmentation import build_segmentation
from dicom_node.report.sources import read_sources
from dicom_node.report.structured_report import build_report
from storage import jobs
from storage.object_kinds import ObjectKind
from storage.results import NewObject, NewResult
from tests.factories import Grid, finding_on, model, volume_of, write_series
from tests.outbox import Node
from tests.shown_series import claimed, store_files
from tests.storage_factory import QUIET_S, Store

NOW = datetime(2026, 3, 1, 23, 30, 15, tzinfo=UTC)
SLICES = 9
HEADER = {
    "SpecificCharacterSet": "ISO_IR 192",
    "PatientName": "Müller^Jörg",
    "IssuerOfPatientID": "HOSP",
    "AccessionNumber": "AC 7",
    "StudyDescription": "Thorax nativ",
}


@dataclass
class ToldSeries:
    """A series whose results come one after the other. folder: for its instances.  to: who gets the results."""

    store: Store
    folder: Path
    to: Sequence[str] = ("fhir",)
    header: Mapping[str, Any] = field(default_factory=lambda: HEADER)
    result_ids: list[int] = field(default_factory=list)

    def analysed(self, probability: float = 0.91273, *, localised: bool = False, **made_by: Any) -> ReportedResult:
        """One more slice, and a result on all of them. localised: what drove the model is measured too."""
        volume = self._received()
        region = np.zeros(volume.hu.shape, dtype=bool)
        region[4:6, 12:20, 8:15] = localised
        shown = {"localisation": region, "heat": np.zeros(volume.hu.shape, dtype=np.uint8)} if localised else {}
        finding = finding_on(volume, probability, model=model(**made_by), **shown)
        about = finding, volume, read_sources(volume), self._context()
        dataset = build_report(*about, segmentation=build_segmentation(*about))
        made = finding.model
        row = NewResult("ANALYSED", made.name, made.version, made.digest, content_of(finding.output), threshold=0.5)
        return self._ended(dataset, row)

    def refused(self, code: str = "MISSING_SLICES", sentence: str = "The series has gaps of 12 mm.") -> ReportedResult:
        """One more slice, and the reason why there is no result."""
        volume, made = self._received(), model()
        refusal = Refusal(code, sentence)
        dataset = build_not_analysed(refusal, read_sources(volume), self._context(), made)
        row = NewResult("NOT_ANALYSED", made.name, made.version, made.digest, reason_code=code, reason_text=sentence)
        return self._ended(dataset, row)

    def read(self, result_id: int) -> ReportedResult:
        """A result as gateways tell it."""
        return read_reported(self.store.database, self.store.files, result_id)

    def report(self, result_id: int) -> Dataset:
        """The report of a result, as it is stored."""
        statement = "SELECT path FROM result_objects WHERE result_id = :id AND kind = 'report'"
        path = self.store.rows(statement, id=result_id)[0]["path"]
        return pydicom.dcmread(self.store.files.absolute(str(path)))

    @property
    def _now(self) -> float:
        return 1000.0 * len(self.result_ids)

    def _received(self) -> Any:
        """The volume with one slice more than at the last result."""
        count = SLICES + len(self.result_ids)
        grid = Grid(shape=(count, 36, 44), spacing_mm=(3.0, 0.8, 0.7))
        write_series(self.folder, grid, **self.header)
        new = sorted(self.folder.iterdir())[0 if not self.result_ids else count - 1 :]
        store_files(self.store, new, self._now, patient_id="4711")
        return volume_of(self.folder)

    def _context(self) -> ReportContext:
        before = self.report(self.result_ids[-1]) if self.result_ids else None
        return ReportContext(NOW, predecessor=before, revision=len(self.result_ids) + 1)

    def _ended(self, dataset: Dataset, row: NewResult) -> ReportedResult:
        store = self.store
        source = pydicom.dcmread(next(self.folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID
        store.close_due(self._now + QUIET_S)
        job = claimed(store, str(source), self._now + QUIET_S)
        uids = dataset.SOPInstanceUID, dataset.SOPClassUID, dataset.SeriesInstanceUID
        item = NewObject(ObjectKind.REPORT, *uids, store.files.write_durably([to_part10(dataset)]))
        with store.database.transaction() as tx:
            now = self._now + 40
            self.result_ids.append(jobs.finish(tx, job.job_id, job.fence, now, row, [item], list(self.to)))
        return self.read(self.result_ids[-1])


def node_of(store: Store, *destinations: AnyDestination, **sections: Any) -> Node:
    """A node that sends from the index and the files of a store, with waiting times short enough for a test."""
    impatient = {
        "first_retry_s": 0.05,
        "longest_retry_s": 0.2,
        "connect_timeout_s": 2.0,
        "response_timeout_s": 5.0,
        "poll_s": 0.02,
    }
    settings = Settings(data_dir=store.folder, destinations=destinations, sender=impatient, **sections)
    return Node(settings, store.database, store.files)

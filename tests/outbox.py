"""A node's index and file store with results waiting in the outbox, and the queries that tests need."""

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom.dsutils import split_dataset
from sqlalchemy import select

from config.settings import Destination, SenderSettings, Settings
from dicom_node.delivery import sender
from storage import audit, jobs, quiet_time, recording, series
from storage.arrival import Arrival, IndexedHeader
from storage.database import Database, open_database
from storage.folder import FolderStore
from storage.jobs import ModelRef, Models
from storage.models import deliveries as delivery_table
from storage.models import results
from storage.results import NewObject, NewResult, StoredObject, objects_of
from tests.storage_factory import said

COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CT = "1.2.840.10008.5.1.4.1.1.2"
CLASS_OF_KIND = {
    "report": COMPREHENSIVE_3D_SR,
    "report-comprehensive": COMPREHENSIVE_SR,
    "segmentation": SEGMENTATION,
    "summary": SECONDARY_CAPTURE,
}
MODEL = ModelRef("test-model", "1", "d" * 64)
MODELS = Models(MODEL)


def instance(
    sop_class: str = COMPREHENSIVE_3D_SR, syntax: str = ExplicitVRLittleEndian, **attributes: object
) -> Dataset:
    """A small data set with file meta information: all that a PACS needs to store an object, and nothing to render."""
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.PatientID = "TEST"
    dataset.PatientName = "Test^Outbox"
    dataset.Modality = "SR" if sop_class in (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR) else "OT"
    # Longer than one PDU of any peer, with values of odd length, like real objects.
    dataset.TextValue = "no one reads this " * 3000
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def part10(dataset: Dataset) -> bytes:
    """The bytes of the data set as a DICOM file."""
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def encoded(path: Path) -> bytes:
    """The encoded data set of a DICOM file, without its file meta."""
    _, offset = split_dataset(path)
    return path.read_bytes()[offset:]


def destination(port: int, name: str = "pacs", ae_title: str = "STORESCP", **more: object) -> Destination:
    """A destination on loopback."""
    return Destination(name=name, ae_title=ae_title, host="127.0.0.1", port=port, **more)


@dataclass
class Node:
    """Settings, index and files of a node under test."""

    settings: Settings
    database: Database
    files: FolderStore

    def add_result(
        self,
        now: float,
        kinds: Sequence[str] = ("report",),
        model: ModelRef = MODEL,
        objects: dict[str, Dataset] | None = None,
        uids: tuple[str, str] | None = None,
    ) -> dict[str, Dataset]:
        """Put one finished result with these objects into the outbox, for every destination. Returns them by kind.

        uids: of the study and the series that it is about, if it is to replace an earlier result; else of new ones.
        """
        study, source = uids or (generate_uid(), generate_uid())
        slice_file = self.files.write_durably([part10(instance(CT))])
        header = IndexedHeader(patient_id="TEST", modality="CT")
        syntax = str(ExplicitVRLittleEndian)
        arrival = Arrival(generate_uid(), CT, source, study, syntax, "CT", "NODE", "127.0.0.1", slice_file, header)
        objects = objects or {
            kind: instance(CLASS_OF_KIND[kind], StudyInstanceUID=study, SeriesInstanceUID=generate_uid())
            for kind in kinds
        }
        stored = [
            NewObject(kind, o.SOPInstanceUID, o.SOPClassUID, o.SeriesInstanceUID, self.files.write_durably([part10(o)]))
            for kind, o in objects.items()
        ]
        result = NewResult("ANALYSED", model.name, model.version, model.digest, said(0.5), threshold=0.5)
        with self.database.transaction() as tx:
            recording.record_instance(tx, arrival, now - 1, 0.5)
            (due,) = quiet_time.due_series(tx, now)
            series.close_series(tx, due.series_pk, now, series.Closing(model))
            job = jobs.claim(tx, "test", now, 60, 3)
            assert job is not None
            jobs.finish(tx, job.job_id, job.fence, now, result, stored, [d.name for d in self.settings.destinations])
        return objects

    def receive(self, datasets: Sequence[Dataset], now: float, quiet_s: float) -> None:
        """Record these instances as received from a PACS, in one transaction."""
        arrivals = [
            Arrival(
                d.SOPInstanceUID, d.SOPClassUID, d.SeriesInstanceUID, d.StudyInstanceUID, d.file_meta.TransferSyntaxUID,
                "PACS", "NODE", "127.0.0.1", self.files.write_durably([part10(d)]),
                IndexedHeader(
                    patient_id=d.PatientID, modality="CT",
                    series_number=str(d.get("SeriesNumber", "")), series_description=d.get("SeriesDescription", ""),
                ),
            )
            for d in datasets
        ]  # fmt: skip
        with self.database.transaction() as tx:
            recording.record_instances(tx, arrivals, now, quiet_s)

    def series(self) -> series.SeriesRecord:
        """The only series."""
        with self.database.read() as tx:
            (record,) = series.list_series(tx)
        return record

    def held(self) -> dict[str, Path]:
        """Files of the received instances by SOP Instance UID."""
        with self.database.read() as tx:
            rows = series.series_instances(tx, series.list_series(tx)[0].series_pk)
        return {row.sop_instance_uid: self.files.absolute(row.path) for row in rows}

    def audited(self, event: str) -> list[dict[str, object]]:
        """Audit rows of one event."""
        with self.database.read() as tx:
            return list(audit.search(tx, event=event))

    def objects(self) -> list[StoredObject]:
        """The objects of every result."""
        with self.database.read() as tx:
            ids = tx.scalars(select(results.c.id)).all()
            return [one for result_id in ids for one in objects_of(tx, result_id)]

    def states(self) -> dict[str, str]:
        """State of the latest delivery for each destination."""
        return {row.destination: row.state for row in self.deliveries()}

    def deliveries(self) -> list[Any]:
        """The rows of the outbox."""
        with self.database.read() as tx:
            return list(tx.execute(select(delivery_table).order_by(delivery_table.c.id)).all())


def make_node(folder: Path, *destinations: Destination, **sections: object) -> Node:
    """An empty node in a folder, with waiting times short enough for a test."""
    impatient = {
        "first_retry_s": 0.05,
        "longest_retry_s": 0.2,
        "connect_timeout_s": 2.0,
        "response_timeout_s": 2.0,
        "poll_s": 0.02,
    }
    chosen = {**impatient, **sections.pop("sender", {})}
    sending_settings = SenderSettings(**{**chosen, "commitment": {"resend_s": 0.05, **chosen.get("commitment", {})}})
    settings = Settings(data_dir=folder, destinations=destinations, sender=sending_settings, **sections)
    return Node(settings, open_database(settings.database_url), FolderStore(settings.files_dir))


@contextmanager
def sending(node: Node) -> Iterator[None]:
    """The sender, running in this process."""
    stop = threading.Event()
    thread = threading.Thread(target=sender.run, args=(node.settings, node.database, node.files, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def ct_series(count: int, syntax: str = ExplicitVRLittleEndian) -> list[Dataset]:
    """Slices of one CT series: 16 x 16 pixels, enough for a PACS."""
    study, source = generate_uid(), generate_uid()
    return [
        instance(
            CT, syntax, StudyInstanceUID=study, SeriesInstanceUID=source, Modality="CT", InstanceNumber=str(number),
            StudyID="1", SeriesNumber="1", StudyDate="20260101", StudyTime="120000", AccessionNumber="A1",
            TextValue="x", Rows=16, Columns=16, BitsAllocated=16, BitsStored=16, HighBit=15, PixelRepresentation=1,
            SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", PixelData=bytes(512),
            ImagePositionPatient=[0, 0, number], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1, 1],
        )
        for number in range(1, count + 1)
    ]  # fmt: skip


def write_all(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    """The data sets as DICOM files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.dcm" for number in range(len(datasets))]
    for path, dataset in zip(paths, datasets, strict=True):
        path.write_bytes(part10(dataset))
    return paths


def same_content(received: Path, sent: Dataset) -> bool:
    """True when a received file has the sent data set's values, in whatever encoding."""
    return dcmread(received) == dcmread(io.BytesIO(part10(sent)))

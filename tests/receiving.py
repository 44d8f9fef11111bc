"""A running receiver and senders for it, for the tests."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, _config, build_context, dimse_primitives
from pynetdicom.association import Association
from pynetdicom.dsutils import encode

from config.settings import Settings
from dicom_node.receiver.intake import Intake
from dicom_node.receiver.receiver import Receiver
from dicom_node.receiver.resources import CHECK_EVERY_S
from storage.folder import FolderStore
from storage.identity import open_store
from storage.stores import files_of

# Tests send data that no toolkit would send.
_config.ENFORCE_UID_CONFORMANCE = False
NAME, PATIENT_ID, BIRTH_DATE = "Planted^Patient", "PLANTED-4711", "19010203"


class _Disk(FolderStore):
    """A file store on a disk whose free space the test sets."""

    free: int | None = None

    def free_bytes(self) -> int:
        return super().free_bytes() if self.free is None else self.free


class Node:
    """A receiver on a free loopback port, with its index and files below `folder`."""

    def __init__(self, folder: Path, receiver: dict[str, Any] | None = None, **settings: Any) -> None:
        settings.setdefault("storage", {"low_disk_mb": 1})
        self.settings = Settings(data_dir=folder, receiver={"port": 0, **(receiver or {})}, **settings)
        in_bucket = bool(self.settings.storage.bucket)
        self.files: Any = files_of(self.settings) if in_bucket else _Disk(self.settings.files_dir)
        self.database = open_store(self.settings.database_url, self.files)
        self.receiver = Receiver(self.settings, self.database, self.files)
        self._stopping: threading.Thread | None = None

    def __enter__(self) -> "Node":
        self.receiver.start()
        self.port = self.receiver.port if self.settings.receiver.plain else self.receiver.tls_port
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self.database.close()

    @property
    def intake(self) -> Intake:
        """The objects that the receiver's associations use."""
        return self.receiver._intake

    def fill_disk(self) -> None:
        """From now on there is no free space, and the receiver's last check is too old to be trusted."""
        self.files.free = 0
        time.sleep(CHECK_EVERY_S)

    def stop(self) -> None:
        """Stop the receiver after it has committed everything."""
        if self._stopping:
            self._stopping.join()
        self.receiver.stop()

    def stop_soon(self) -> None:
        """Begin to stop the receiver."""
        self._stopping = threading.Thread(target=self.receiver.stop)
        self._stopping.start()


def ct_slice(
    number: int = 1, *, syntax: str = ExplicitVRLittleEndian, size: int = 64, series_uid: str | None = None
) -> FileDataset:
    """A CT slice with random pixels and a made-up patient to look for."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    slice_ = FileDataset(
        "", {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=UID(syntax).is_implicit_VR, is_little_endian=True
    )
    slice_.SOPClassUID = CTImageStorage
    slice_.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    slice_.SeriesInstanceUID = series_uid or generate_uid()
    slice_.StudyInstanceUID = f"{slice_.SeriesInstanceUID[:60]}.1" if series_uid else generate_uid()
    slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate = NAME, PATIENT_ID, BIRTH_DATE
    slice_.Modality, slice_.InstanceNumber, slice_.StudyDate = "CT", number, "20200101"
    slice_.Rows = slice_.Columns = size
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    pixels = np.random.default_rng().integers(-1000, 1000, (size, size), dtype=np.int16)
    slice_.PixelData = pixels.tobytes()
    slice_["PixelData"].VR = "OW"
    return slice_


@contextmanager
def associate(
    node: Node, *, calling_ae: str = "SENDER", called_ae: str = "DICOM_NODE", bind: str = "127.0.0.1"
) -> Iterator[Association]:
    """An association of pynetdicom's SCU, released at the end, or the rejected request."""
    entity = AE(ae_title=calling_ae)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    contexts = [build_context(CTImageStorage, [syntax]) for syntax in ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")] + [
        build_context("1.2.840.10008.1.1")
    ]
    association = entity.associate(
        "127.0.0.1", node.port, contexts=contexts, ae_title=called_ae, bind_address=(bind, 0)
    )
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def store(node: Node, *sent: Dataset, **how: Any) -> list[tuple[int, str]]:
    """Send on one association. Returns status and Error Comment of each response."""
    with associate(node, **how) as association:
        assert association.is_established
        answers = [_send(association, each) for each in sent]
    return [(answer.Status, answer.get("ErrorComment", "")) for answer in answers]


def _send(association: Association, sent: Dataset) -> Dataset:
    """Send a C-STORE whose command has the UIDs of the file meta information, whatever the data set says."""
    request = dimse_primitives.C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = sent.file_meta.MediaStorageSOPClassUID
    request.AffectedSOPInstanceUID = sent.file_meta.MediaStorageSOPInstanceUID
    request.Priority = 2
    syntax = sent.file_meta.TransferSyntaxUID
    context = association._get_valid_context(CTImageStorage, syntax, "scu", allow_conversion=False)
    request.DataSet = io.BytesIO(encode(sent, syntax.is_implicit_VR, True) or b"")
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    answer = Dataset()
    answer.Status = response.Status
    if getattr(response, "ErrorComment", None):
        answer.ErrorComment = response.ErrorComment
    return answer

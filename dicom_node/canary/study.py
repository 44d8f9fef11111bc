"""The study that canaries are made of, and its copies: the same pixels under new UIDs, marked."""

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import UID

from config.headers import UNREADABLE, quiet
from config.settings import Settings
from dicom_node.errors import NodeError
from dicom_node.scu.push import find_instances
from storage.canaries import PATIENT_ID, PATIENT_NAME, UID_ROOT

SEED, SLICES, SIZE = 11, 40, 256
"""Of the synthetic chest, which the demonstration model calls positive."""
MARK = "CANARY"
PERSONAL = (
    *("PatientBirthDate", "PatientAddress", "OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames"),
    *("IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientComments", "ReferringPhysicianName"),
    *("RequestAttributesSequence", "ReferencedStudySequence", "ReferencedImageSequence", "SourceImageSequence"),
    *("RequestingPhysician", "PerformingPhysicianName", "OperatorsName", "PatientTelephoneNumbers"),
)
"""What a copy leaves out: it says who somebody is, or names objects that are not in the copy."""


@dataclass(frozen=True)
class Study:
    """The study. digest: SHA-256 over its files; with other files, other results are expected."""

    paths: tuple[Path, ...]
    digest: str


def study_of(settings: Settings) -> Study:
    """The site's own, or else a synthetic one. Raises NodeError if it is not there, or not one series."""
    folder = settings.canary.folder or _synthetic(settings.data_dir / "canary")
    if not folder.is_dir():
        raise NodeError(f"[canary] folder: {folder} is not there")
    paths = tuple(instance.path for instance in find_instances(folder))
    if not paths:
        raise NodeError(f"[canary] folder: {folder} holds no DICOM image")
    series = {str(_header(path).get("SeriesInstanceUID", "")) for path in paths}
    if len(series) != 1:
        raise NodeError(f"[canary] folder: {folder} holds {len(series)} series; a canary is one")
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return Study(paths, hashlib.sha256("\n".join(digests).encode()).hexdigest())


def _header(path: Path) -> Dataset:
    try:
        with quiet():
            return dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    except (OSError, *UNREADABLE) as error:
        raise NodeError(f"[canary] folder: {path.name} cannot be read ({type(error).__name__})") from error


def _synthetic(root: Path) -> Path:
    """A synthetic chest, made once: what is made by a later version may differ."""
    folder = root / "phantom"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as made:
            _write_phantom(Path(made) / "phantom")
            os.replace(Path(made) / "phantom", folder)
    return folder


def _write_phantom(folder: Path) -> None:
    # Imported here: every command would wait for it, and only the leader needs it once.
    from inference.phantom.chest import Scanner, make_phantom
    from inference.phantom.lesions import LesionSettings
    from inference.phantom.series import write_series

    lesions = LesionSettings(count=(5, 9), radius_mm=(16, 34), ground_glass_hu=(240, 400))
    scanner = Scanner(noise_hu=10.0, kernel="B30f")
    phantom = make_phantom(SEED, slices=SLICES, size=SIZE, lesions="mixed", lesion_settings=lesions, scanner=scanner)
    write_series(phantom, folder)


def new_uid() -> str:
    """A UID that nobody can guess: PS3.5 B.2."""
    return f"{UID_ROOT}{uuid.uuid4().int}"


def write_copy(study: Study, study_uid: str, series_uid: str, sop_uids: Sequence[str], folder: Path) -> None:
    """The study's images as a canary: with these UIDs, in an empty folder. Raises NodeError for an unreadable one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    frames: dict[str, str] = {}
    for number, (path, sop_uid) in enumerate(zip(study.paths, sop_uids, strict=True)):
        try:
            with quiet():
                dataset = dcmread(path)
                _mark(dataset, study_uid, series_uid, sop_uid, frames)
                dataset.save_as(folder / f"{number:05d}.dcm")
        except (OSError, *UNREADABLE) as error:
            raise NodeError(f"the canary cannot be made of {path.name}: {type(error).__name__}") from error


def _mark(dataset: Dataset, study_uid: str, series_uid: str, sop_uid: str, frames: dict[str, str]) -> None:
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = study_uid, series_uid, sop_uid
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    former = str(dataset.get("FrameOfReferenceUID", ""))
    if former:
        dataset.FrameOfReferenceUID = frames.setdefault(former, new_uid())
    dataset.PatientName, dataset.PatientID = PATIENT_NAME, PATIENT_ID
    dataset.AccessionNumber, dataset.StudyID = "", MARK
    dataset.StudyDescription = f"{MARK} {dataset.get('StudyDescription', '')}"[:64].strip()
    for name in PERSONAL:
        if name in dataset:
            del dataset[name]
    # Type 2: an image without them is none.
    dataset.PatientBirthDate, dataset.ReferringPhysicianName = "", ""

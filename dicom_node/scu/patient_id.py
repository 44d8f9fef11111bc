"""The Patient ID as PACS know it, which a pseudonymous index does not hold."""

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from config.headers import UNREADABLE
from config.settings import Settings
from storage.errors import StorageError
from storage.files import FileStore, StoredFile


def patient_id_for_pacs(settings: Settings, files: FileStore, patient_id: str, path: str) -> str:
    """The ID to ask a PACS with; empty if the file cannot be read, which the Study Root model does without.

    patient_id: as the index has it. path: of a stored file of the patient, read if the index has pseudonyms.
    """
    if not settings.storage.pseudonym_key.get_secret_value():
        return patient_id
    try:
        with files.at_hand([StoredFile(path, "", 0)]) as (file,):
            return str(dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID") or "")
    except (InvalidDicomError, StorageError, *UNREADABLE):
        return ""

"""The Patient ID as PACS know it, which a pseudonymous index does not hold."""

from pydicom import dcmread

from config.settings import Settings
from storage.files import FileStore


def patient_id_for_pacs(settings: Settings, patient_id: str, path: str) -> str:
    """The ID to ask a PACS with.

    patient_id: as the index has it. path: of a stored file of the patient, read where the index has pseudonyms.
    """
    if not settings.storage.pseudonym_key.get_secret_value():
        return patient_id
    file = FileStore(settings.files_dir).absolute(path)
    return str(dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID") or "")

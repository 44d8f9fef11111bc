"""Headers of the source images, completed and in UTF-8, so that they can be reported on.

Scanners and archives leave type 2 attributes out, write dates that are not dates, and use character sets whose text
cannot be copied into another object as bytes. Some write far worse. Whatever a header holds, these functions return one
from which an object can be built: `copied` lists what is taken, `values` says in which form.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from highdicom._standard_utils import get_sop_class_iod_map
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sequence import Sequence as Items
from pydicom.valuerep import IS

from config.headers import quiet
from dicom_node.report import copied
from dicom_node.report.header_reader import HeaderReader, put, tag_of
from inference.errors import CorruptInstance
from inference.volume.ct_volume import CTVolume
from inference.volume.part10 import DEFLATED, UNREADABLE, read_header, read_meta

UTF_8 = "ISO_IR 192"

IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_READ_PLAIN = [*IDENTITY, *copied.SIMPLE]
_NUMBER = ["InstanceNumber"]
_READ_OTHERS = [*IDENTITY, *_NUMBER]


class Source(Dataset):
    """A completed header.

    emptied, altered: keywords of the attributes whose values could not be kept at all, or not as they were.
    unread: the file that holds its Instance Number, see `instance_number`; None if the header itself does.
    """

    emptied: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()
    unread: Path | None = None


def read_sources(volume: CTVolume) -> list[Source]:
    """Headers of the volume's instances in its z order: the first completed, the others with their identity alone.

    A multi-frame instance comes once, at its first slice. Only the first file is read here: of hundreds of others, no
    more is used than the numbers of those few that a result names, see `instance_number`.
    Raises CorruptInstance when the first file can no longer be read.
    """
    sources: list[Source] = []
    seen: set[Path] = set()
    with quiet():
        for slice_ in volume.slices:
            if slice_.path in seen:
                continue
            seen.add(slice_.path)
            source = Source() if sources else complete(_read_first(slice_.path))
            source.unread = slice_.path if sources else None
            # As the loader has them: the volume is made of these instances, in this series.
            source.SOPClassUID, source.SOPInstanceUID = slice_.sop_class_uid, slice_.sop_instance_uid
            source.StudyInstanceUID, source.SeriesInstanceUID = volume.study_instance_uid, volume.series_instance_uid
            sources.append(source)
    return sources


def instance_number(header: Dataset) -> IS | None:
    """The Instance Number of a header, None if it has no valid one.

    Raises CorruptInstance when the number stands in a file that can no longer be read.
    """
    unread = header.unread if isinstance(header, Source) else None
    if unread is not None:
        with quiet():
            header = _identified(_read(unread, _NUMBER), _NUMBER)
    number: IS | None = header.get("InstanceNumber")
    return number


def read_headers(paths: Sequence[Path]) -> list[Source]:
    """Headers of the files that can be read, for a report on a series that could not be analysed: see `read_sources`.

    Raises CorruptInstance when none can be read.
    """
    headers: list[Source] = []
    with quiet():
        for path in paths:
            try:
                header = _read(path, _READ_OTHERS) if headers else _read_first(path)
            except CorruptInstance:
                continue
            if _has_identity(header):
                headers.append(_identified(header) if headers else complete(header))
    if not headers:
        raise CorruptInstance("none of the series' instances has a readable header")
    return headers


def read_attributes(path: Path, keywords: Sequence[str]) -> Dataset:
    """These attributes of one file, as they stand there. Raises CorruptInstance when it cannot be read."""
    with quiet():
        return _read(path, keywords)


def complete(source: Dataset) -> Source:
    """A copy of what `copied` lists, valid, in UTF-8, and with every type 2 attribute present.

    Completing twice changes nothing.
    """
    with quiet():
        copy = _identified(source)
        reader = HeaderReader(source)
        copy.SpecificCharacterSet = UTF_8
        for keyword in copied.SIMPLE:
            found = reader.values(keyword)
            if found or keyword in copied.REQUIRED:
                put(copy, keyword, found)
        for keyword in copied.ITEMS:
            items = reader.items(keyword)
            if items:
                copy.add(DataElement(tag_of(keyword), "SQ", Items(items)))
        reader.emptied += _drop_incomplete(copy)
    before = source if isinstance(source, Source) else Source()
    copy.emptied = tuple(dict.fromkeys([*before.emptied, *reader.emptied]))
    copy.altered = tuple(dict.fromkeys([*before.altered, *reader.altered]))
    return copy


def _read_first(path: Path) -> Dataset:
    """What is copied of the first image; without its sequences if they hold more items than are read.

    Raises CorruptInstance.
    """
    try:
        return _read(path, [*_READ_PLAIN, *copied.ITEMS])
    except CorruptInstance:
        plain = Source(_read(path, _READ_PLAIN))
        plain.emptied = tuple(copied.ITEMS)
        return plain


def _read(path: Path, keywords: Sequence[str]) -> Dataset:
    """These attributes of one file, as the loader reads it. Raises CorruptInstance naming the file by its own name."""
    try:
        with path.open("rb") as file:
            syntax = _transfer_syntax(file)
            if syntax in DEFLATED:
                raise CorruptInstance(f"{path.name}: it is deflated")
            return read_header(file, syntax, [tag_of(keyword) for keyword in keywords])
    except UNREADABLE as error:
        raise CorruptInstance(f"{path.name}: the header cannot be read ({type(error).__name__})") from None


def _transfer_syntax(file: BinaryIO) -> str:
    """Of a file; empty for a bare data set."""
    try:
        return read_meta(file).transfer_syntax_uid
    except InvalidDicomError:
        file.seek(0)
        return ""


def _has_identity(header: Dataset) -> bool:
    """Whether a report can refer to the instance, and highdicom knows what its class's header holds."""
    found = _identified(header)
    return all(keyword in found for keyword in IDENTITY) and found.SOPClassUID in get_sop_class_iod_map()


def _identified(header: Dataset, keywords: Sequence[str] = _READ_OTHERS) -> Source:
    """The header's UIDs and its number, or which of them are asked for, as far as they are valid."""
    copy, reader = Source(), HeaderReader(header)
    for keyword in keywords:
        found = reader.values(keyword)
        if found:
            put(copy, keyword, found)
    return copy


def _drop_incomplete(header: Dataset) -> list[str]:
    """Leave out attributes that need another one that is not there. Returns the keywords that were left out."""
    dropped = []
    trial = [keyword for keyword in copied.CLINICAL_TRIAL if keyword in header]
    subject = header.get("ClinicalTrialSubjectID") or header.get("ClinicalTrialSubjectReadingID")
    if not (header.get("ClinicalTrialSponsorName") and header.get("ClinicalTrialProtocolID") and subject):
        dropped += trial
    else:
        # Type 2 beside them.
        for keyword in ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName"):
            header.setdefault(tag_of(keyword), DataElement(tag_of(keyword), "LO", ""))
        if "ClinicalTrialTimePointDescription" in header:
            header.setdefault("ClinicalTrialTimePointID", DataElement(tag_of("ClinicalTrialTimePointID"), "LO", ""))
    method = header.get("DeidentificationMethod") or header.get("DeidentificationMethodCodeSequence")
    if header.get("PatientIdentityRemoved") == "YES" and not method:
        dropped.append("PatientIdentityRemoved")
    for keyword in dropped:
        del header[tag_of(keyword)]
    return dropped

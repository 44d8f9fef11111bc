"""Whose scan a series is, as far as its headers leave no doubt, and on which day it was made.

Two scans are compared only if everything agrees that identifies a patient: the ID, who issued it, the name, the birth
date and the sex. Records are merged, IDs are given twice, and twins share a birth date: in doubt nothing is compared.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydicom.dataset import Dataset

from config.headers import UNREADABLE, quiet
from dicom_node.report.header_reader import HeaderReader
from dicom_node.report.sources import read_attributes
from inference.errors import CorruptInstance
from storage.pseudonyms import Pseudonyms

_NEEDED = ("PatientID", "PatientName", "PatientBirthDate")
_ISSUER = "IssuerOfPatientIDQualifiersSequence"
_OTHERS = ("IssuerOfPatientID", "PatientSex", "PatientIdentityRemoved")
_DAYS = ("AcquisitionDate", "StudyDate")
_READ = ("SpecificCharacterSet", *_NEEDED, *_OTHERS, _ISSUER, *_DAYS)
# What systems fill in for an unknown birth date lies before it, or is it.
_EARLIEST_BIRTH = date(1900, 1, 2)


@dataclass(frozen=True)
class Examined:
    """Whose scan it is and when it was made. person: a digest; the same for nobody else."""

    person: str
    day: date


@dataclass(frozen=True)
class _Person:
    """What identifies a patient, in a form that is the same however it was typed."""

    identifier: str
    issuer: str
    name: str
    born: date
    sex: str


@dataclass(frozen=True)
class Stated:
    """The person and the day that one image names; None for what it does not say for certain."""

    person: _Person | None
    day: date | None


_NOTHING: Mapping[Path, Stated] = {}


def examined(paths: Sequence[Path], pseudonyms: Pseudonyms, known: Mapping[Path, Stated] = _NOTHING) -> Examined | None:
    """Whose scan the images are, and the day of the earliest; None in any doubt.

    paths: all images of the series.  pseudonyms: for an index that must not identify patients, the digest is keyed.
    known: what some of them state.
    """
    found = {known.get(path) or stated(path) for path in paths}
    if None in found:
        return None
    people, days = {one.person for one in found if one}, {one.day for one in found if one}
    person, day = next(iter(people), None), min((day for day in days if day is not None), default=None)
    if len(people) != 1 or person is None or day is None or None in days:
        return None
    if not _EARLIEST_BIRTH <= person.born <= day:
        return None
    return Examined(_digest(person, pseudonyms), day)


def stated(path: Path) -> Stated | None:
    """What an image states; None if it cannot be read."""
    try:
        with quiet():
            return _stated(read_attributes(path, _READ))
    except (CorruptInstance, OSError, *UNREADABLE):  # OSError: pydicom's for items that end too soon
        return None


def _stated(header: Dataset) -> Stated:
    reader = HeaderReader(header)
    given = {keyword: reader.values(keyword) for keyword in (*_NEEDED, *_OTHERS, *_DAYS)}
    day = next((_day(values[0]) for values in map(given.get, _DAYS) if values), None)
    # A name is tidied up when it is read, such as of empty components at its end.
    unreadable = set(reader.emptied) | set(reader.altered) - {"PatientName"}
    removed = given["PatientIdentityRemoved"] == ["YES"]
    if removed or unreadable & {*_NEEDED, *_OTHERS} or not all(given[keyword] for keyword in _NEEDED):
        return Stated(None, day)
    name, born = _plain_name(given["PatientName"][0]), _day(given["PatientBirthDate"][0])
    issuer = json.dumps(["".join(given["IssuerOfPatientID"]), *_qualifiers(header)])
    person = _Person(given["PatientID"][0], issuer, name, born, "".join(given["PatientSex"]))
    return Stated(person if name.strip("^=") else None, day)


def _qualifiers(header: Dataset) -> list[str]:
    """Who issued the ID, by the identifier that is unique in the world."""
    items = header.get(_ISSUER) or []
    return [f"{item.get('UniversalEntityID', '')} {item.get('UniversalEntityIDType', '')}" for item in items]


def _plain_name(name: str) -> str:
    """A name without accents, case and punctuation: the same name typed twice is the same."""
    letters = unicodedata.normalize("NFD", name.casefold())
    kept = "".join(one for one in letters if one.isalnum() or one in "^=")
    return "=".join(group.rstrip("^") for group in kept.split("=")).rstrip("=")


def _day(digits: str) -> date:
    return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))


def _digest(person: _Person, pseudonyms: Pseudonyms) -> str:
    text = json.dumps([person.identifier, person.issuer, person.name, person.born.isoformat(), person.sex])
    keyed = pseudonyms.of(text)
    return keyed if keyed != text else hashlib.sha256(text.encode()).hexdigest()

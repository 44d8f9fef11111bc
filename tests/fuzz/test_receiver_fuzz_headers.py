"""Broken data sets through header reading. `FUZZ=100000 pytest tests/fuzz` for a long run."""

import io
import os
import random
import time
import warnings

import pytest
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.receiver.errors import Unreadable
from dicom_node.receiver.headers import read_header
from dicom_node.receiver.part10 import encode_file_start
from dicom_node.receiver.walk import NeedsMore
from tests.fuzz.mutations import mutate
from tests.receiving import ct_slice

ROUNDS = int(os.environ.get("FUZZ", "4000"))
LONGEST_S = 1.0
"""Of the processor's time."""


def seeds(implicit: bool) -> list[bytes]:
    """A plain slice, one with sequences of undefined length, one in another character set."""
    plain, nested, foreign = (ct_slice(size=4) for _ in range(3))
    inner, outer = Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-28000", "Lung"
    outer.AnatomicRegionSequence = Sequence([inner])
    outer.is_undefined_length_sequence_item = True
    nested.ReferencedStudySequence = Sequence([outer, inner])
    nested["ReferencedStudySequence"].is_undefined_length = True
    nested.add_new(0x00091001, "UN", b"private")
    foreign.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    foreign.PatientName = "Yamada^Tarou=山田^太郎"
    encoded = []
    for each in (plain, nested, foreign):
        stream = DicomBytesIO()
        stream.is_implicit_VR, stream.is_little_endian = implicit, True
        write_dataset(stream, each, parent_encoding="ascii")
        encoded.append(stream.getvalue())
    return encoded


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit VR", "explicit VR"])
def test_a_broken_data_set_is_refused_or_read_as_pydicom_reads_it(implicit: bool) -> None:
    dice = random.Random(20261123)
    whole = seeds(implicit)
    accepted = 0
    for number in range(ROUNDS):
        data = mutate(dice.choice(whole), dice, whole)
        begun = time.process_time()
        try:
            header = read_header(data, len(data), implicit)
        except Unreadable:
            continue
        finally:
            assert time.process_time() - begun < LONGEST_S
        accepted += 1
        assert header.sop_instance_uid == _pydicom_reads(data, implicit), f"round {number}: {data!r}"
    assert accepted > ROUNDS // 20


def _pydicom_reads(data: bytes, implicit: bool) -> bytes:
    """The SOP Instance UID as pydicom reads it; raises what it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        element = dcmread(io.BytesIO(_file_start(syntax) + data)).get_item("SOPInstanceUID")
        return bytes((element.value if element is not None else b"") or b"")


def _file_start(syntax: str) -> bytes:
    return encode_file_start("1.2.840.10008.5.1.4.1.1.2", "1.2.3", syntax)


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit VR", "explicit VR"])
def test_a_header_is_the_same_from_the_first_bytes_as_from_all(implicit: bool) -> None:
    dice = random.Random(7)
    whole = seeds(implicit)
    for _ in range(ROUNDS // 4):
        data = mutate(dice.choice(whole), dice, whole)
        head = data[: dice.randrange(len(data) + 1)]
        try:
            from_head = read_header(head, len(data), implicit)
        except NeedsMore:
            continue
        except Unreadable:
            with pytest.raises(Unreadable):
                read_header(data, len(data), implicit)
            continue
        assert from_head == read_header(data, len(data), implicit)

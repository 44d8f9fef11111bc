"""A result as the segments of an ORU^R01 message, HL7 v2.5.1 chapter 7."""

import hashlib
from collections.abc import Iterable, Iterator
from textwrap import wrap

from config.coding import Code
from config.gateways.hl7 import Hl7Destination
from dicom_node.gateways.hl7 import times
from dicom_node.gateways.hl7.segments import Place, Segment
from dicom_node.gateways.reported import FindingSaid, Former, Name, PatientSaid, ReportedResult
from dicom_node.gateways.sr_content import Number

CT = Code("25045-6", "LN", "CT unspecified body region")
STUDY = Code("113014", "DCM", "DICOM Study")
SERIES = Code("112002", "DCM", "Series Instance UID")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
FINDING = Code("121071", "DCM", "Finding")
INTERPRETATION = Code("363713009", "SCT", "Has interpretation")
SITE = Code("363698007", "SCT", "Finding Site")
LATERALITY = Code("272741003", "SCT", "Laterality")
TOPOGRAPHY = Code("106233006", "SCT", "Topographical modifier")
DERIVATION = Code("121401", "DCM", "Derivation")
METHOD = Code("370129005", "SCT", "Measurement Method")
TRACKING = Code("112039", "DCM", "Tracking Identifier")
ALGORITHM = Code("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION = Code("111003", "DCM", "Algorithm Version")
COMMENT = Code("121106", "DCM", "Comment")
PERCENT = Code("%", "UCUM", "Percent")
PRIVATE_SCHEME = "99DICOMNODE"

LINE = 120
"""Characters of a line of text. Receivers show them as they come, and some cut what is longer."""
PRELIMINARY, CORRECTION, WRONG, NOT_OBTAINED, NO_RESULT = "PCWXO"
"""OBX-11 (table 0085); the first two are also those of OBR-25 (table 0123)."""


def control_id(destination: str, result: ReportedResult) -> str:
    """MSH-10: the same for the same result and destination, and for nothing else; 20 characters, as its type allows."""
    return hashlib.sha256(f"{destination} {result.report_uid}".encode()).hexdigest()[:20].upper()


def control_id_after(former: str) -> str:
    """MSH-10 of a message that says once more what the one with this MSH-10 said."""
    return hashlib.sha256(f"again {former}".encode()).hexdigest()[:20].upper()


def oru_r01(destination: Hl7Destination, result: ReportedResult) -> list[Segment]:
    """The message, without what the site has changed."""
    header = [_msh(destination, result), _pid(result.patient)]
    order = _order_numbers(destination, result)
    obx = [segment.put(1, str(number)) for number, segment in enumerate(_observations(result), 1)]
    return [*header, Segment("ORC").put(1, "RE").put(2, order[0]).put(3, *order[1:]), _obr(order, result), *obx]


def study_at(result: ReportedResult) -> str:
    """When the study was made."""
    return times.of_dicom(result.study.date, result.study.time, result.created)


def _msh(destination: Hl7Destination, result: ReportedResult) -> Segment:
    ends = (
        destination.sending_application,
        destination.sending_facility,
        destination.receiving_application,
        destination.receiving_facility,
    )
    segment = Segment("MSH")
    for number, name in enumerate(ends, 3):
        segment.put(number, name)
    segment.put(7, times.of_moment(result.created)).put(9, "ORU", "R01", "ORU_R01")
    segment.put(10, control_id(destination.name, result)).put(11, destination.processing_id).put(12, "2.5.1")
    # Accept acknowledgement always, application acknowledgement never: one answer to one message.
    return segment.put(15, "AL").put(16, "NE").put(18, destination.character_set)


def _pid(patient: PatientSaid) -> Segment:
    segment = Segment("PID").put(1, "1")
    if patient.patient_id:  # an issuer alone identifies nobody
        segment.put(3, patient.patient_id, "", "", patient.issuer, "MR")
    for repetition, components in enumerate(_names(patient.name), 1):
        segment.put(5, *components, repetition=repetition)
    return segment.put(7, times.day(patient.birth_date)).put(8, patient.sex)


def _names(name: Name) -> Iterator[list[str]]:
    """XPN of each group: HL7 has the suffix before the prefix, and in XPN.8 how the name is written (table 4000)."""
    yield [name.family, name.given, name.middle, name.suffix, name.prefix]
    for group, written in zip(name.text.split("=")[1:3], "IP", strict=False):
        family, given, middle, prefix, suffix = (*group.split("^"), *[""] * 5)[:5]
        if group.strip("^"):
            yield [family, given, middle, suffix, prefix, "", "", written]


def _order_numbers(destination: Hl7Destination, result: ReportedResult) -> tuple[str, str, str]:
    """Placer number, filler number and its namespace.

    If the report names no filler number, the node gives one, the same for all results of a series by a model, and by
    one that took its place: by it a receiver finds what a correction replaces.
    """
    if result.study.filler:
        return result.study.placer, result.study.filler, ""
    own = hashlib.sha256(f"{result.series_uid} {result.first_model}".encode()).hexdigest()[:20].upper()
    return result.study.placer, own, destination.sending_application


def _obr(order: tuple[str, str, str], result: ReportedResult) -> Segment:
    segment = Segment("OBR").put(1, "1").put(2, order[0]).put(3, *order[1:])
    segment.put(4, *_coded(CT)).put(7, study_at(result)).put(18, result.study.accession_number)
    segment.put(22, times.of_moment(result.created)).put(24, "CT")
    return segment.put(25, CORRECTION if result.replaces else PRELIMINARY)


def _observations(result: ReportedResult) -> Iterator[Segment]:
    yield _obx("HD", STUDY, "", result.study.study_uid, status=NO_RESULT)
    yield _obx("HD", SERIES, "", result.series_uid, status=NO_RESULT)
    status = CORRECTION if result.replaces else PRELIMINARY
    if result.analysed:
        yield from _analysed(result, status)
    else:
        yield from _not_analysed(result, status)
    if result.model.name:
        yield _obx("ST", ALGORITHM, "", result.model.name, status=status)
        yield _obx("ST", ALGORITHM_VERSION, "", result.model.version, status=status)
    yield from _comments(result, status)


def _comments(result: ReportedResult, status: str) -> Iterator[Segment]:
    """Each sentence under a number of its own (OBX-4), then those numbers that only former results had, as wrong."""
    for place, sentence in enumerate(result.sentences, 1):
        yield _obx("TX", COMMENT, f"T{place}", status=status).put_lines(5, _lines(sentence))
    told = max((len(former.sentences) for former in result.formers), default=0)
    for place in range(len(result.sentences) + 1, told + 1):
        yield _obx("TX", COMMENT, f"T{place}", status=WRONG)


def _lines(sentence: str) -> list[str]:
    """Lines as a RIS shows them."""
    return [part for line in sentence.splitlines() for part in wrap(line, LINE, break_on_hyphens=False)]


def _analysed(result: ReportedResult, status: str) -> Iterator[Segment]:
    said = list(_statements(result, status, study_at(result)))
    yield from said
    yield from _taken_back(result, said)


def _statements(said: ReportedResult | Former, status: str, at: str) -> Iterator[Segment]:
    """Each finding and each measurement under a number of its own (OBX-4), by which its lines belong together."""
    for place, finding in enumerate(said.findings, 1):
        yield from _finding(finding, str(place), status, at)
    for place, number in enumerate(said.numbers, len(said.findings) + 1):
        yield from _number(number, str(place), status, at)


def _taken_back(result: ReportedResult, said: Iterable[Segment]) -> Iterator[Segment]:
    """Each line that was told before and is not told now, by its name and number, as wrong and without its value."""
    now = {_line(segment) for segment in said}
    for former in result.formers:
        for segment in _statements(former, WRONG, ""):
            if _line(segment) not in now:
                now.add(_line(segment))
                kept = {place: text for place, text in segment.values.items() if place.field in (2, 3, 4)}
                yield Segment("OBX", kept).put(11, WRONG)


def _line(segment: Segment) -> tuple[str, ...]:
    """By which a receiver finds a line again: code and scheme of OBX-3, and OBX-4."""
    return tuple(segment.values.get(place, "") for place in (Place(3, 1, 1), Place(3, 1, 3), Place(4)))


def _not_analysed(result: ReportedResult, status: str) -> Iterator[Segment]:
    """Why there is no result. What was told before is called wrong."""
    told = list(_taken_back(result, ()))
    yield from told or [_obx("NM", CERTAINTY, "1", status=WRONG if result.replaces else NOT_OBTAINED)]
    reason = Code(result.reason_code, PRIVATE_SCHEME, result.reason_code.replace("_", " ").capitalize())
    yield _obx("CWE", FINDING, "", *_coded(reason), status=status)


def _finding(finding: FindingSaid, place: str, status: str, at: str) -> Iterator[Segment]:
    flag = {True: "A", False: "N", None: ""}[finding.positive]
    if finding.percent:
        certainty = _obx("NM", CERTAINTY, place, finding.percent, unit=PERCENT, status=status)
        yield certainty.put(8, flag).put(14, at)
    yield _obx("CWE", FINDING, place, *_coded(finding.concept), status=status).put(8, flag)
    said = [(INTERPRETATION, finding.interpretation), (SITE, finding.site), (LATERALITY, finding.laterality)]
    yield from _codes(said, place, status)


def _number(number: Number, place: str, status: str, at: str) -> Iterator[Segment]:
    """A measurement and what it would mean something else without."""
    yield _obx("NM", number.concept, place, number.value, unit=number.unit, status=status).put(14, at)
    said = [(SITE, number.site), (LATERALITY, number.laterality), (TOPOGRAPHY, number.topography)]
    yield from _codes([*said, (DERIVATION, number.derivation), (METHOD, number.method)], place, status)
    for name, value, unit in number.qualifiers:
        yield _obx("NM", name, place, value, unit=unit, status=status)
    if number.group:
        yield _obx("ST", TRACKING, place, number.group, status=status)


def _codes(said: Iterable[tuple[Code, Code | None]], place: str, status: str) -> Iterator[Segment]:
    for name, code in said:
        if code is not None:
            yield _obx("CWE", name, place, *_coded(code), status=status)


def _obx(kind: str, name: Code, place: str, *value: str, status: str, unit: Code | None = None) -> Segment:
    segment = Segment("OBX").put(2, kind).put(3, *_coded(name)).put(4, place).put(5, *value)
    return segment.put(6, *(_coded(unit) if unit else ())).put(11, status)


def _coded(code: Code) -> tuple[str, str, str]:
    """CWE and CE have the text in the middle; table 0396 has DICOM's own names for the schemes."""
    return code.value, code.meaning, code.scheme

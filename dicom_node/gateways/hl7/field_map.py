"""The fields that a site wants otherwise, [destinations.fields]."""

from collections.abc import Mapping, Sequence

from config.gateways.hl7 import MAPPED_SEGMENTS, PLACEHOLDERS, field_address
from dicom_node.gateways.hl7 import times
from dicom_node.gateways.hl7.oru import study_at
from dicom_node.gateways.hl7.segments import Segment
from dicom_node.gateways.reported import ReportedResult


def placeholders(result: ReportedResult) -> dict[str, str]:
    """What each placeholder stands for: plain text, which the encoding escapes like any other."""
    patient, study = result.patient, result.study
    values = {
        "accession_issuer": study.accession_issuer,
        "accession_number": study.accession_number,
        "birth_date": patient.birth_date,
        "family_name": patient.name.family,
        "filler_order_number": study.filler,
        "given_name": patient.name.given,
        "model_name": result.model.name,
        "model_version": result.model.version,
        "patient_id": patient.patient_id,
        "patient_id_issuer": patient.issuer,
        "placer_order_number": study.placer,
        "referring_physician": " ".join(filter(None, [study.referring.given, study.referring.family])),
        "report_uid": result.report_uid,
        "reported_at": times.of_moment(result.created),
        "result_id": str(result.result_id),
        "series_uid": result.series_uid,
        "sex": patient.sex,
        "study_at": study_at(result),
        "study_description": study.description,
        "study_uid": study.study_uid,
    }
    assert tuple(values) == PLACEHOLDERS  # noqa: S101 - the settings promise each of them
    return values


def apply(fields: Mapping[str, str], segments: Sequence[Segment], result: ReportedResult) -> list[Segment]:
    """The message with the site's own texts. A segment that only the map names is added in its place."""
    values = placeholders(result)
    addresses = {place: field_address(place) for place in fields}
    added = {address.segment for address in addresses.values()} - {segment.name for segment in segments}
    head = {segment.name: segment for segment in segments if segment.name in MAPPED_SEGMENTS}
    head |= {name: Segment(name).put(1, "1") for name in added}
    for place, template in fields.items():
        address = addresses[place]
        head[address.segment].replace(
            address.field, address.component, address.subcomponent, template.format_map(values)
        )
    others = [segment for segment in segments if segment.name not in MAPPED_SEGMENTS]
    return [*(head[name] for name in MAPPED_SEGMENTS if name in head), *others]

"""From an analysis to the DICOM objects of its result, encoded once: what is stored is what every send sends."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from pydicom import Dataset, dcmread

from config.reasons import ReasonCode, Refusal
from config.settings import ReportSettings, Settings
from dicom_node.analysis.analyse import Analysis
from dicom_node.report.context import ChangeStatement, ReportContext, StudyStatement
from dicom_node.report.frame import to_part10
from dicom_node.report.lower_classes import in_lower_classes
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.objects import KINDS, build_all
from dicom_node.report.sources import Source, read_headers, read_sources
from dicom_node.report.summary import build_refusal_summary
from inference.errors import CorruptInstance
from inference.finding import ModelIdentity
from inference.models.cards import OperatingPoint
from storage.object_kinds import ObjectKind


@dataclass(frozen=True)
class ReportObject:
    """One encoded object of a result. part10: the file's bytes."""

    kind: ObjectKind
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    part10: bytes


@dataclass(frozen=True)
class ResultObjects:
    """The objects of a result, the report first.

    emptied, altered: attributes whose values in the source's header could not be copied at all, or not as they were.
    """

    objects: Sequence[ReportObject] = ()
    emptied: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()


def report_objects(
    analysis: Analysis,
    paths: Sequence[Path],
    model: ModelIdentity,
    settings: Settings,
    *,
    instances_digest: str = "",
    predecessor: bytes | None = None,
    revision: int = 1,
    operating_points: tuple[OperatingPoint, ...] = (),
    study: StudyStatement | None = None,
    change: ChangeStatement | None = None,
    headers: Sequence[Source] | None = None,
) -> ResultObjects:
    """The objects that say what became of a series.

    predecessor: the earlier report of the same series as a Part 10 file, which this one replaces.
    study: what the study's results say together, if this is not the only one.
    headers: of the instances, for a series that was not analysed, if they are not to be read from `paths`.
    change: how it differs from an earlier result of the same patient, if it was compared with one.
    A series that was not analysed gives a report if the site asks for one, or if an earlier report must not stand.
    """
    context = replace(
        _context(settings.report, instances_digest, predecessor, revision, operating_points, study),
        series_numbers=settings.series_numbers(model.name),
        change=change,
    )
    if analysis.finding is not None and analysis.volume is not None:
        sources = read_sources(analysis.volume)
        built = build_all(analysis.finding, analysis.volume, sources, context, _kinds(settings.report))
        return _stored([_encode(kind, dataset) for kind, dataset in built], sources)
    if analysis.refusal is None:
        raise ValueError("an analysis has a finding or a reason")
    own_object = analysis.refusal.code == ReasonCode.OWN_OBJECT
    if predecessor is None and (own_object or not settings.report.report_not_analysed):
        return ResultObjects()
    try:
        sources = read_headers(paths) if headers is None else [*headers]
    except CorruptInstance:
        # Without one readable header there is no study to file a report under; the audit has the reason.
        return ResultObjects()
    return _not_analysed(analysis, analysis.refusal, sources, model, context, pictured=settings.report.summary)


def write_objects(
    analysis: Analysis,
    paths: Sequence[Path],
    model: ModelIdentity,
    settings: Settings,
    folder: Path,
    operating_points: tuple[OperatingPoint, ...] = (),
    study: StudyStatement | None = None,
) -> list[str]:
    """Write the objects of a result to a folder, "not analysed" reports included. Returns the files' names.

    Names are made of the kind and a digest of the object's UID: nothing from a data set becomes a path.
    """
    asked_for = settings.report.model_copy(update={"report_not_analysed": True})
    asking = settings.model_copy(update={"report": asked_for})
    built = report_objects(analysis, paths, model, asking, operating_points=operating_points, study=study)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for item in (item for item in built.objects if item.kind in KINDS):
        file = folder / f"{item.kind}-{hashlib.sha256(item.sop_instance_uid.encode()).hexdigest()[:12]}.dcm"
        file.write_bytes(item.part10)
        written.append(str(file))
    return written


def _kinds(report: ReportSettings) -> list[ObjectKind]:
    wanted = {
        ObjectKind.REPORT: True,
        ObjectKind.SEGMENTATION: report.segmentation,
        ObjectKind.SUMMARY: report.summary,
        ObjectKind.DISPLAY_REPORT: report.display,
        ObjectKind.KEY_IMAGES: report.key_objects,
        ObjectKind.HEAT: report.heat,
    }
    return [kind for kind, asked_for in wanted.items() if asked_for]


def _not_analysed(
    analysis: Analysis,
    refusal: Refusal,
    sources: Sequence[Source],
    model: ModelIdentity,
    context: ReportContext,
    *,
    pictured: bool,
) -> ResultObjects:
    """The report on the reason, and a picture of it if the pixels show it."""
    built = [_encode(ObjectKind.REPORT, build_not_analysed(refusal, sources, context, model))]
    if pictured and analysis.volume is not None and analysis.evidence is not None:
        picture = build_refusal_summary(refusal, analysis.evidence, analysis.volume, sources, context, model)
        built.append(_encode(ObjectKind.SUMMARY, picture))
    return _stored(built, sources)


def _stored(objects: list[ReportObject], sources: Sequence[Source]) -> ResultObjects:
    """The objects, and the report in the lower classes that a destination may accept instead."""
    report = next(item for item in objects if item.kind == ObjectKind.REPORT)
    lower = [_encode(kind, dataset) for kind, dataset in in_lower_classes(report.part10)]
    return ResultObjects(objects + lower, sources[0].emptied, sources[0].altered)


def _context(
    report: ReportSettings,
    instances_digest: str,
    predecessor: bytes | None,
    revision: int,
    operating_points: tuple[OperatingPoint, ...],
    study: StudyStatement | None,
) -> ReportContext:
    return ReportContext(
        created_at=datetime.now().astimezone(),
        manufacturer=report.manufacturer,
        device_name=report.device_name,
        device_serial=report.device_serial,
        software_version=version("dicom-node"),
        institution=report.institution,
        predecessor=dcmread(io.BytesIO(predecessor)) if predecessor else None,
        revision=revision,
        instances_digest=_seed(instances_digest, revision),
        operating_points=operating_points,
        prevalence=report.prevalence,
        study=study,
    )


def _seed(instances_digest: str, revision: int) -> str:
    """What the objects' UIDs are made of: a later revision of the same instances gets new ones."""
    return instances_digest if revision == 1 or not instances_digest else f"{instances_digest} revision {revision}"


def _encode(kind: ObjectKind, dataset: Dataset) -> ReportObject:
    return ReportObject(
        kind, dataset.SOPInstanceUID, dataset.SOPClassUID, dataset.SeriesInstanceUID, to_part10(dataset)
    )

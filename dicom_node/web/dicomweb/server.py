"""QIDO-RS and WADO-RS of the node's own results, read-only: what a web viewer asks for.

A study, series or object is looked up by its UID in the index; the index alone says where its file is. Each file is
read whole and its digest checked before a byte of it is sent.
"""

import itertools
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import structlog
from pydicom import Dataset
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from dicom_node.web.context import context_of
from dicom_node.web.dicomweb import pictures, told
from dicom_node.web.dicomweb.access import for_viewers, may_leave, note_look, note_search
from dicom_node.web.dicomweb.asked import Asked, asked, days, is_single_part, refuse_other_than_json, uid_of, uids
from dicom_node.web.dicomweb.offered import (
    DICOM,
    EXPLICIT_LE,
    INSTANCE_KEYS,
    JSON,
    OCTETS,
    RESOURCES,
    SERIES_KEYS,
    STUDY_KEYS,
    Answered,
)
from dicom_node.web.security.guard import Guarded
from storage.errors import CorruptFile, StorageError
from storage.files import FileStore
from storage.own_objects import OwnObject, OwnStudy, Wanted, find_studies, objects_of_study
from storage.pseudonyms import Pseudonyms

log = structlog.get_logger()

MOST_OBJECTS = 500
"""Of a study; one with more is not served."""
MOST_BYTES = 1 << 30
MOST_METADATA_BYTES = 256 << 20
"""Bytes of the files in one answer, as objects and as metadata."""
CUT_OFF = "Only the newest results were searched. Name a patient, an accession number or later days."
LOST = "The objects of some studies cannot be read; they are left out."
MORE = "There are additional results that can be requested."


@dataclass(frozen=True)
class _Named:
    """What a path names: a study, and those of its objects that are meant."""

    study: OwnStudy
    objects: list[OwnObject]


@for_viewers
def studies(request: Request) -> Response:
    """Search for studies."""
    refuse_other_than_json(request.headers)
    wanted = asked(request.query_params, STUDY_KEYS)
    range_ = days(wanted.matches.get("StudyDate"))
    context = context_of(request)
    may_see = _of_models_that_may_leave(request)
    with context.database.read() as tx:
        found = find_studies(tx, _wanted(request, wanted.matches), range_.reported_since)
        there = _page(
            ((one, may_see(objects_of_study(tx, one.study_pk, MOST_OBJECTS))) for one in found.studies), wanted
        )
    shown = [(study, told_of) for study, objects in there[: wanted.limit] if (told_of := _study(request, objects))]
    said = {CUT_OFF: found.is_cut_off, MORE: len(there) > wanted.limit, LOST: len(shown) < len(there[: wanted.limit])}
    note_search(request, [study.study_instance_uid for study, _ in shown])
    return _json(
        [told_of for _, told_of in shown], [*wanted.warnings, *(text for text, holds in said.items() if holds)]
    )


@for_viewers
def series(request: Request) -> Response:
    """Search for the series of a study."""
    refuse_other_than_json(request.headers)
    wanted = asked(request.query_params, SERIES_KEYS)
    named = _named(request)
    headers = sorted(_headers(request, named.objects), key=_series_of)
    groups = [list(group) for _, group in groupby(headers, _series_of)]
    matching = [group for group in groups if _matches(group[0], wanted.matches)]
    _note(request, named, "search")
    return _listed([told.series(group) for group in matching], wanted)


@for_viewers
def instances(request: Request) -> Response:
    """Search for the objects of a study or series."""
    refuse_other_than_json(request.headers)
    wanted = asked(request.query_params, INSTANCE_KEYS)
    named = _named(request)
    headers = [one for one in _headers(request, named.objects) if _matches(one, wanted.matches)]
    _note(request, named, "search")
    return _listed([told.instance(one) for one in headers], wanted)


@for_viewers
def metadata(request: Request) -> Response:
    """What objects hold apart from pixels."""
    refuse_other_than_json(request.headers)
    named = _named(request)
    _refuse_too_much(named.objects, MOST_METADATA_BYTES)
    files = context_of(request).files
    answer = [told.metadata(files.read_verified(one.path, one.sha256)) for one in named.objects]
    _note(request, named, "metadata")
    return _json(answer)


@for_viewers
def retrieve(request: Request) -> Response:
    """The objects, byte for byte as they are stored."""
    named = _named(request)
    single = is_single_part(request.headers, single="instance" in request.path_params)
    _refuse_too_much(named.objects, MOST_BYTES)
    files = context_of(request).files
    first = files.read_verified(named.objects[0].path, named.objects[0].sha256)
    if any(files.size_of(one.path) is None for one in named.objects):
        raise CorruptFile("an object's file is missing")
    _note(request, named, "objects")
    if single:
        return Response(first, media_type=DICOM)
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: {DICOM}; transfer-syntax={EXPLICIT_LE}\r\n\r\n".encode()
    tail = f"--{boundary}--\r\n".encode()
    length = sum(len(head) + one.size + 2 for one in named.objects) + len(tail)
    return StreamingResponse(
        _parts(files, named.objects, first, head, tail),
        media_type=f'multipart/related; type="{DICOM}"; boundary={boundary}',
        headers={"Content-Length": str(length)},
    )


@for_viewers
def frames(request: Request) -> Response:
    """Frames of an object, uncompressed."""
    named = _named(request)
    found = _frames(request, named)
    numbers = pictures.numbers_of(request.path_params["frames"], found)
    single = is_single_part(request.headers, single=len(numbers) == 1, form=OCTETS)
    _note(request, named, "objects")
    if single:
        return Response(found.octets(numbers[0]), media_type=OCTETS)
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: {OCTETS}; transfer-syntax={EXPLICIT_LE}\r\n\r\n".encode()
    parts = (part for number in numbers for part in (head, found.octets(number), b"\r\n"))
    body = itertools.chain(parts, [f"--{boundary}--\r\n".encode()])
    return StreamingResponse(body, media_type=f'multipart/related; type="{OCTETS}"; boundary={boundary}')


@for_viewers
def rendered(request: Request) -> Response:
    """An object of one frame, or one frame, as a picture."""
    named = _named(request)
    found = _frames(request, named)
    named_frame = request.path_params.get("frames", "1")
    numbers = pictures.numbers_of(named_frame, found)
    if len(numbers) > 1 or ("frames" not in request.path_params and found.count > 1):
        raise HTTPException(406, f"The object has {found.count} frames: ask for a picture of one, /frames/1/rendered.")
    picture, kind = pictures.rendered(found, numbers[0], request.headers, request.query_params)
    _note(request, named, "objects")
    return Response(picture, media_type=kind)


def _frames(request: Request, named: _Named) -> pictures.Frames:
    (one,) = named.objects
    _refuse_too_much(named.objects, MOST_METADATA_BYTES)
    return pictures.frames_of(context_of(request).files.read_verified(one.path, one.sha256))


def _parts(files: FileStore, objects: Sequence[OwnObject], first: bytes, head: bytes, tail: bytes) -> Iterator[bytes]:
    """The parts of an answer. If a file cannot be read, the connection ends: nobody takes a part for the whole."""
    for number, one in enumerate(objects):
        try:
            content = files.read_verified(one.path, one.sha256) if number else first
        except StorageError as error:
            log.error("an object of a result cannot be read", kind=str(one.kind), error=type(error).__name__)
            raise ConnectionError("an object cannot be read") from error
        yield head
        yield content
        yield b"\r\n"
    yield tail


def _wanted(request: Request, matches: Mapping[str, str]) -> Wanted:
    pseudonyms = Pseudonyms(context_of(request).settings.storage.pseudonym_key.get_secret_value())
    patient, accession = matches.get("PatientID"), matches.get("AccessionNumber")
    range_ = days(matches.get("StudyDate"))
    return Wanted(
        study_uids=uids(matches["StudyInstanceUID"]) if "StudyInstanceUID" in matches else None,
        patient_id=None if patient is None else pseudonyms.of(patient),
        accession_number=None if accession is None else pseudonyms.of(accession),
        since=range_.since,
        until=range_.until,
    )


def _page(pairs: Iterable[tuple[OwnStudy, list[OwnObject]]], wanted: Asked) -> list[tuple[OwnStudy, list[OwnObject]]]:
    """The studies with objects from the offset on, one more than the limit. No more are looked at."""
    there = (pair for pair in pairs if pair[1])
    return list(islice(there, wanted.offset, wanted.offset + wanted.limit + 1))


def _named(request: Request) -> _Named:
    """What the path names. Raises HTTPException."""
    path = request.path_params
    study_uid = uid_of(path, "study")
    chosen = {name: uid_of(path, name) for name in ("series", "instance") if name in path}
    with context_of(request).database.read() as tx:
        found = find_studies(tx, Wanted(study_uids=(study_uid,))).studies
        objects = objects_of_study(tx, found[0].study_pk, MOST_OBJECTS + 1) if found else []
    if len(objects) > MOST_OBJECTS:
        raise HTTPException(413, "The study has too many objects.")
    meant = [
        one
        for one in _of_models_that_may_leave(request)(objects)
        if one.series_instance_uid == chosen.get("series", one.series_instance_uid)
        and one.sop_instance_uid == chosen.get("instance", one.sop_instance_uid)
    ]
    if not meant:
        raise HTTPException(404, "There is no result of that name, or it does not stand.")
    return _Named(found[0], meant)


def _of_models_that_may_leave(request: Request) -> Callable[[Sequence[OwnObject]], list[OwnObject]]:
    """What leaves out results that may not go to where the request comes from. Each model is looked at once."""
    known: dict[tuple[str, str], bool] = {}

    def chosen(objects: Sequence[OwnObject]) -> list[OwnObject]:
        for model in {(one.model_name, one.model_digest) for one in objects} - known.keys():
            known[model] = may_leave(request, *model)
        return [one for one in objects if known[one.model_name, one.model_digest]]

    return chosen


def _refuse_too_much(objects: Sequence[OwnObject], most: int) -> None:
    if sum(one.size for one in objects) > most:
        raise HTTPException(413, "That is too much for one answer: ask for series or instances.")


def _headers(request: Request, objects: Sequence[OwnObject]) -> list[Dataset]:
    held: told.Headers = request.app.state.dicomweb_headers
    files = context_of(request).files
    return [held.of(files, one) for one in objects]


def _study(request: Request, objects: Sequence[OwnObject]) -> told.Json | None:
    """A study; None if the file that tells of it cannot be read, so that the others are still shown."""
    try:
        return told.study(_headers(request, objects[:1])[0], objects)
    except CorruptFile:
        log.error("an object of a result cannot be read", kind=str(objects[0].kind))
        return None


def _series_of(header: Dataset) -> str:
    return str(header.SeriesInstanceUID)


def _matches(header: Dataset, matches: Mapping[str, str]) -> bool:
    return all(
        str(header.get(keyword, "")) in (uids(value) if keyword.endswith("UID") else (value,))
        for keyword, value in matches.items()
    )


def _note(request: Request, named: _Named, what: str) -> None:
    study = named.study
    note_look(request, what, study.study_pk, study.study_instance_uid, study.patient_id)


def _listed(found: Sequence[told.Json], wanted: Asked) -> Response:
    end = wanted.offset + wanted.limit
    return _json(found[wanted.offset : end], [*wanted.warnings, *([MORE] if len(found) > end else [])])


def _json(answer: Sequence[told.Json], warnings: Sequence[str] = ()) -> Response:
    response = Response(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"), media_type=JSON)
    for warning in warnings:
        response.headers.append("Warning", f'299 dicom-node "{warning}"')
    return response


_METHODS = ["GET", "OPTIONS"]
_ANSWERS: Mapping[Answered, Guarded] = {
    "studies": studies,
    "series": series,
    "instances": instances,
    "metadata": metadata,
    "frames": frames,
    "pictures": rendered,
    "objects": retrieve,
}
ROUTES = [Route(one.path, _ANSWERS[one.answered], methods=_METHODS) for one in RESOURCES]

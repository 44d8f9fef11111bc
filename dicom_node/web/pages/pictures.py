"""Pictures of a series for the viewer, and what it must know of them. Nothing here may be kept by a browser's disk."""

import math
import re
import zlib
from functools import partial
from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dicom_node.web.context import context_of
from dicom_node.web.security.audited import audited
from dicom_node.web.security.guard import require
from dicom_node.web.security.roles import Role
from dicom_node.web.viewer.decoding import NotShown
from dicom_node.web.viewer.planes import Plane
from dicom_node.web.viewer.viewer import Place, SeriesChanged, Viewer
from storage import audit, shown
from storage import series as store
from storage.errors import CorruptFile, NotFound

NOT_KEPT = {"Cache-Control": "no-store"}
_TOKEN = re.compile("[0-9a-f]{16}")
_WIDEST_HU = 100_000.0


def viewer_of(request: Request) -> Viewer:
    """The viewer of this process: one memory for all who look."""
    state = request.app.state
    if not hasattr(state, "viewer"):
        context = context_of(request)
        state.viewer = Viewer(context.database, context.files, context.settings.web.viewer_mb << 20)
    found: Viewer = state.viewer
    return found


@require(Role.VIEWER)
def images(request: Request) -> Response:
    """What there is to see of a series. This is the look that the audit trail records; the pictures follow from it."""
    series_pk = int(request.path_params["series"])
    viewer = viewer_of(request)
    try:
        opened = viewer.open(series_pk)
        about = subject_of(request, series_pk)
    except NotFound:
        raise HTTPException(404) from None
    told = opened.describe()
    if not viewer.has_planes(opened):
        told["planes"] = {plane: shape for plane, shape in told["planes"].items() if plane == Plane.AXIAL}
    audited(request, "web.read", about, page="images", images=len(opened.frames))
    return JSONResponse(told, headers=NOT_KEPT)


@require(Role.VIEWER)
def first(request: Request) -> Response:
    """One image, as soon as possible."""
    token = request.path_params["token"]
    if not _TOKEN.fullmatch(token):
        raise HTTPException(404)
    return _answered(
        request, partial(viewer_of(request).first_look, int(request.path_params["series"]), token, *_window(request))
    )


@require(Role.VIEWER)
def overlays(request: Request) -> Response:
    """The segments that can be laid over the images."""
    return _answered(request, lambda: viewer_of(request).overlays(int(request.path_params["series"])))


@require(Role.VIEWER)
def picture(request: Request) -> Response:
    """One image of a plane, 8 bit, for a window in HU."""
    return _answered(request, partial(viewer_of(request).picture, _place(request), *_window(request)))


@require(Role.VIEWER)
def hounsfield(request: Request) -> Response:
    """The HU of one image of a plane: int16, little endian, row by row."""
    place = _place(request)

    def make() -> bytes:
        return zlib.compress(viewer_of(request).hounsfield(place).astype("<i2").tobytes(), 1)

    return _answered(request, make, "application/octet-stream", {"Content-Encoding": "deflate"})


@require(Role.VIEWER)
def overlay(request: Request) -> Response:
    """One segment in one image of a plane."""
    numbers = request.path_params["object"], request.path_params["segment"]
    return _answered(request, partial(viewer_of(request).overlay, _place(request), *map(int, numbers)))


@require(Role.VIEWER)
def summary(request: Request) -> Response:
    """The summary image of a result, as it was sent."""
    numbers = int(request.path_params["series"]), int(request.path_params["object"])
    return _answered(request, partial(viewer_of(request).summary, *numbers))


@require(Role.OPERATOR)
def download(request: Request) -> Response:
    """One DICOM object of a result, as every destination gets it."""
    series_pk, object_id = int(request.path_params["series"]), int(request.path_params["object"])
    context = context_of(request)
    try:
        with context.database.read() as tx:
            found = shown.object_of_series(tx, series_pk, object_id)
        content = context.files.read_verified(found.path, found.sha256)
    except NotFound:
        raise HTTPException(404) from None
    except CorruptFile:
        raise HTTPException(410, "The object's file is no longer there.") from None
    about = subject_of(request, series_pk, result_id=found.result_id)
    audited(request, "web.download", about, object=str(found.kind), sop_uid=found.sop_instance_uid)
    name = f"series-{series_pk}-{found.kind}-{object_id}.dcm"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', **NOT_KEPT}
    return Response(content, media_type="application/dicom", headers=headers)


def subject_of(request: Request, series_pk: int, **more: Any) -> audit.Subject:
    """What an audit row about a series names. Raises NotFound."""
    with context_of(request).database.read() as tx:
        record = store.get_series(tx, series_pk)
    return audit.Subject(
        series_uid=record.series_instance_uid,
        study_uid=record.study_instance_uid,
        patient_id=record.patient_id,
        **more,
    )


def _place(request: Request) -> Place:
    given = request.path_params
    if given["plane"] not in list(Plane) or not _TOKEN.fullmatch(given["token"]):
        raise HTTPException(404)
    return Place(int(given["series"]), given["token"], Plane(given["plane"]), int(given["index"]))


def _window(request: Request) -> tuple[float, float]:
    """Centre and width in HU. Raises HTTPException."""
    centre, width = _number(request, "c", -600.0), _number(request, "w", 1500.0)
    if not 1 <= width <= _WIDEST_HU or abs(centre) > _WIDEST_HU:
        raise HTTPException(400, "There is no such window.")
    return centre, width


def _number(request: Request, name: str, default: float) -> float:
    try:
        value = float(request.query_params.get(name, default))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise HTTPException(400, "There is no such window.")
    return value


def _answered(
    request: Request, make: Any, media_type: str = "image/png", headers: dict[str, str] | None = None
) -> Response:
    """What was made, or in a few words why it cannot be. 409: the browser must open the series again."""
    try:
        made = make()
    except NotFound:
        raise HTTPException(404) from None
    except SeriesChanged as error:
        return JSONResponse({"message": str(error)}, 409, NOT_KEPT)
    except NotShown as error:
        return JSONResponse({"message": str(error)}, 422, NOT_KEPT)
    if isinstance(made, bytes):
        return Response(made, media_type=media_type, headers=NOT_KEPT | (headers or {}))
    return JSONResponse(made, headers=NOT_KEPT)


class _Number(Convertor[int]):
    """A number that fits into the index: a longer one names nothing, as a word does."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())

_AT = "{token}/{plane}/{index:number}"
ROUTES = [
    Route("/series/{series:number}/images.json", images),
    Route("/series/{series:number}/overlays.json", overlays),
    Route("/series/{series:number}/first/{token}.png", first),
    Route(f"/series/{{series:number}}/image/{_AT}.png", picture),
    Route(f"/series/{{series:number}}/hu/{_AT}", hounsfield),
    Route(f"/series/{{series:number}}/overlay/{_AT}/{{object:number}}-{{segment:number}}.png", overlay),
    Route("/series/{series:number}/summary/{object:number}.png", summary),
    Route("/series/{series:number}/object/{object:number}", download),
]

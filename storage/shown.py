"""What a person looks at of a series beside its images: the objects of its results, by their numbers in the index."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from storage.errors import NotFound
from storage.models import result_objects, results
from storage.object_kinds import ObjectKind


@dataclass(frozen=True)
class ShownObject:
    """One DICOM object of a result. object_id: its number in the index.  superseded: a later result replaces it."""

    object_id: int
    series_pk: int
    result_id: int
    kind: ObjectKind
    sop_instance_uid: str
    path: str
    sha256: str
    size: int
    model_name: str
    model_version: str
    superseded: bool


def objects_of_series(tx: Connection, series_pk: int) -> list[ShownObject]:
    """The objects of a series' standing results, in the order in which they were recorded."""
    query = _objects(series_pk).where(results.c.superseded_at.is_(None))
    return [_shown(row) for row in tx.execute(query).mappings()]


def object_of_series(tx: Connection, series_pk: int, object_id: int) -> ShownObject:
    """One object of a series' results, standing or not. Raises NotFound."""
    row = tx.execute(_objects(series_pk).where(result_objects.c.id == object_id)).mappings().first()
    if row is None:
        raise NotFound("the series has no such object")
    return _shown(row)


def _objects(series_pk: int) -> Select[Any]:
    return (
        select(
            result_objects.c.id.label("object_id"),
            results.c.series_pk,
            results.c.id.label("result_id"),
            *(result_objects.c[name] for name in ("kind", "sop_instance_uid", "path", "sha256", "size")),
            results.c.model_name,
            results.c.model_version,
            results.c.superseded_at.is_not(None).label("superseded"),
        )
        .select_from(results.join(result_objects))
        .where(results.c.series_pk == series_pk)
        .order_by(result_objects.c.id)
    )


def _shown(row: Any) -> ShownObject:
    return ShownObject(**{**row, "kind": ObjectKind(row["kind"]), "superseded": bool(row["superseded"])})

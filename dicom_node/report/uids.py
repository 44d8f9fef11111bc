"""UIDs derived from what a result was made of, so that a rebuild gets the same ones."""

import hashlib
import uuid
from collections.abc import Iterable

TEMPLATE_VERSION = "3"
"""Version of the content that this package writes; raise it when the content of a report changes."""

_NAMESPACE = uuid.UUID("5a0f0f5e-3a4c-4d0b-9a55-6f2f8c1d7b21")


def result_uid(
    kind: str,
    series_uid: str,
    instances_digest: str,
    model_digest: str,
    template_version: str = TEMPLATE_VERSION,
) -> str:
    """A UID under 2.25 that is a function of its arguments (UUIDv5).

    kind: what is named, such as "report" or "report series".
    series_uid: Series Instance UID of the source.
    instances_digest: of the source instances, see `digest_of_uids`.
    model_digest: of the model, empty if none took part.
    Source: PS3.5, B.2 "UUID derived UID".
    """
    return _uid("result", kind, series_uid, instances_digest, model_digest, template_version)


def device_uid(*parts: str) -> str:
    """A UID under 2.25 of a device or an algorithm; changes when any of its parts does."""
    return _uid("device", *parts)


def digest_of_uids(sop_instance_uids: Iterable[str]) -> str:
    """SHA-256 hex over the sorted, distinct SOP Instance UIDs."""
    return hashlib.sha256("\n".join(sorted(set(sop_instance_uids))).encode()).hexdigest()


def _uid(*parts: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"

"""Settings of a DICOMweb archive that results go to."""

from typing import Annotated, Literal

from pydantic import Field

from config.gateways.http import HttpDestination


class StowDestination(HttpDestination):
    """[[destinations]], kind "stow": an archive that takes the objects of results by DICOMweb (STOW-RS).

    It gets the same objects, byte for byte, as a PACS gets by C-STORE. Needs the extra: dicom-node[gateways].
    """

    kind: Annotated[Literal["stow"], Field(examples=["stow"])]
    """What it is. The objects are posted to `url` with /studies after it."""
    max_request_mb: int = Field(default=256, ge=1)
    """MiB of objects in one request; more go in several."""

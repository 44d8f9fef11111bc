"""Settings of the read-only DICOMweb server beside the pages."""

import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from config.section import Section

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?")


class DicomwebSettings(Section):
    """[web.dicomweb]: a web viewer reads the node's own results by QIDO-RS and WADO-RS, at /dicomweb."""

    enabled: bool = False
    """Answer there. Only results that stand are seen: reports, segmentations, summaries; the images are the PACS's."""
    credentials: Path | None = Field(default=None, examples=[Path("/etc/dicom-node/dicomweb-token")])
    """File with nothing but a secret of 32 characters or more. A viewer that sends it as its bearer token sees the
    results of all patients. Only the node's user should be able to read the file. Without it, only a browser that is
    logged in to the pages is answered."""
    origins: tuple[str, ...] = ()
    """Addresses of web viewers whose scripts may read the answers, such as "https://viewer.hospital.example"; no others
    may."""

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is not an origin, such as https://viewer.hospital.example, without a path"
                )
        return origins

    @model_validator(mode="after")
    def _other_origins_have_a_token(self) -> Self:
        if self.origins and self.credentials is None:
            raise ValueError("origins need credentials: a viewer elsewhere cannot log in by the pages' form")
        return self

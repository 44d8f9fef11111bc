"""Settings of the canary: a study with a known result that the node sends to itself."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from config.section import Section


class CanarySettings(Section):
    """[canary]: a study with a known result, sent to the node's own receiver again and again (docs/canary.md).

    It goes the whole way to the report, is marked everywhere, counts in no statistics and goes to no other destination.
    """

    every_hours: float | None = Field(default=None, gt=0, examples=[6.0])
    """A canary is sent this often. If none passes within that time, that is an alarm. Without it, none is sent."""
    within_minutes: float = Field(default=60.0, gt=0)
    """A canary that has not arrived everywhere after this time has failed."""
    folder: Path | None = Field(default=None, examples=["/etc/dicom-node/canary"])
    """Folder with the images of one CT series that the models take, without patient data. Without it: a synthetic
    chest, which the node makes once and keeps in data_dir."""
    destination: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,32}$")] = ""
    """Name of the destination that takes the canary's report, a DICOM peer or one of kind "stow", and with
    `send_results = false`: it gets nothing else. Empty: nothing is sent."""
    keep: int = Field(default=3, ge=1)
    """The images of so many canaries are kept; those of older ones are deleted."""

    @property
    def within_s(self) -> float:
        """`within_minutes` in seconds."""
        return self.within_minutes * 60

    @property
    def patience_s(self) -> float | None:
        """If no canary has passed for this many seconds, that is an alarm; None if none is sent."""
        return None if self.every_hours is None else self.every_hours * 3600 + self.within_s

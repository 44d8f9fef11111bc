"""Settings of what the PACS is asked about results that were reported."""

from pydantic import Field

from config.section import Section


class IocmSettings(Section):
    """[iocm]: are the images that results were reported on still at the PACS, and still this patient's?

    Rejection notes need no setting here: name "rejections" in `classes` of the [[sources]] that may send them.
    """

    poll_hours: float = Field(default=0.0, ge=0)
    """The query destination is asked about each recent result this often, in hours; 0: never. What it says twice holds:
    if images or their series are gone, or the study has another Patient ID, the result is taken back (WITHDRAWN)."""
    days: float = Field(default=7.0, gt=0)
    """Results are recent for this many days. Choose fewer than the PACS keeps its images."""

"""How the source calls its series and its slices, for sentences and captions."""

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.report import wording
from dicom_node.report.frame import Origin
from dicom_node.report.sources import instance_number
from dicom_node.report.values import text_of
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume


def slice_name(volume: CTVolume, origin: Origin, z: int) -> str:
    """How the source calls a slice: by its Instance Number, or by its frame. Raises as `instance_number`."""
    source = volume.slices[z]
    if len(origin.sources) < len(volume.slices):
        return f"frame {source.frame + 1}"
    for header in origin.sources:
        if header.SOPInstanceUID == source.sop_instance_uid:
            number = instance_number(header)
            if number is not None:
                return f"image {number}"
    return f"slice {z + 1} from below"


def acquisition(volume: CTVolume, origin: Origin) -> str:
    """What the series is called, its kernel and its slice thickness, in a sentence."""
    first = origin.first
    kernel = values_of(first, "ConvolutionKernel") or text_of("LO", volume.header.kernel)
    thickness = volume.header.slice_thickness_mm or _number(first.get("SliceThickness"))
    return wording.acquisition(values_of(first, "SeriesDescription"), kernel, thickness)


def values_of(header: Dataset, keyword: str) -> str:
    """All values of an attribute as one text, empty if there is none."""
    value = header.get(keyword)
    return " ".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")


def _number(value: object) -> float | None:
    return float(str(value)) if value not in (None, "") else None


def verdict_slices(finding: Finding, volume: CTVolume, origin: Origin) -> str:
    """Which slices the output was computed from, in a sentence; empty if it was all of them."""
    count = len(volume.slices)
    if finding.output.slices is None or finding.output.slices == (0, count - 1):
        return ""
    low, high = finding.output.slices
    names = slice_name(volume, origin, low), slice_name(volume, origin, high)
    return wording.verdict_slices(high - low + 1, count, *names)

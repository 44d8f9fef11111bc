"""Ordinary chest CT as several vendors store it: different stored values and headers for the same Hounsfield units.

The conventions are from the vendors' conformance statements and public archives; none of them changes the image.
"""

from dataclasses import replace

import numpy as np

from benchmarks.degradations import Change, Image, Images, spacing_mm, to_hu

FEET_FIRST = [-1, 0, 0, 0, 1, 0]
PRONE = [-1, 0, 0, 0, -1, 0]


def stored_as(intercept: int, *, signed: bool, padding: int | None = None, padding_tag: int | None = None) -> Change:
    """The same values as 16-bit words with another intercept.

    padding: stored value outside the round field of view, also written as Pixel Padding Value; None changes nothing.
    padding_tag: the element's value as written, if that differs (63536 for -2000).
    """

    def change(images: Images) -> Images:
        values: dict[str, object] = {
            "RescaleIntercept": intercept,
            "RescaleSlope": 1,
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": int(signed),
            "PixelPaddingValue": None,
        }
        made = []
        for image in images:
            stored = np.clip(np.rint(to_hu(image)) - intercept, -32768 if signed else 0, 32767 if signed else 65535)
            if padding is not None:
                stored[_outside(stored.shape)] = padding
            header = image.with_values(**values)
            if padding_tag is not None:
                header.header.add_new("PixelPaddingValue", "US", padding_tag)
            elif padding is not None:
                header.header.add_new("PixelPaddingValue", "SS" if signed else "US", padding)
            made.append(replace(header, stored=stored))
        return made

    return change


def _outside(shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = np.indices(shape)
    return np.asarray(np.hypot(rows - (shape[0] - 1) / 2, columns - (shape[1] - 1) / 2) > min(shape) / 2)


def with_header(**values: object) -> Change:
    return lambda images: [image.with_values(**values) for image in images]


def both(*changes: Change) -> Change:
    """Apply several changes, one after the other."""

    def change(images: Images) -> Images:
        for one in changes:
            images = one(images)
        return images

    return change


def _turned(image: Image, orientation: list[int], across: bool, down: bool, position: str) -> Image:
    """Reversed pixels, with an orientation and position that say so: the voxels stay where they are."""
    rows, columns = image.stored.shape
    spacing = [float(value) for value in image.header.PixelSpacing]
    x, y, z = image.position
    x, y = x + across * (columns - 1) * spacing[1], y + down * (rows - 1) * spacing[0]
    turned = image.with_values(
        ImageOrientationPatient=orientation,
        ImagePositionPatient=[round(x, 4), round(y, 4), z],
        PatientPosition=position,
    )
    return replace(turned, stored=image.stored[:: -1 if down else 1, :: -1 if across else 1])


def prone(images: Images) -> Images:
    return [_turned(image, PRONE, True, True, "HFP") for image in images]


def feet_first(images: Images) -> Images:
    return [_turned(image, FEET_FIRST, True, False, "FFS") for image in images]


def fine_matrix(images: Images) -> Images:
    """Twice the rows and columns."""
    made = []
    for image in images:
        pixel = [float(value) / 2 for value in image.header.PixelSpacing]
        made.append(replace(image.with_values(PixelSpacing=pixel), stored=image.stored.repeat(2, 0).repeat(2, 1)))
    return made


GE = both(
    stored_as(-1024, signed=True, padding=-2000, padding_tag=63536),
    with_header(
        Manufacturer="GE MEDICAL SYSTEMS", ManufacturerModelName="LightSpeed VCT", ConvolutionKernel="LUNG",
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], RescaleType="US", SpacingBetweenSlices=None, BodyPartExamined=None,
        PatientPosition="FFS",
    ),
)  # fmt: skip
PHILIPS = both(
    stored_as(-1024, signed=False, padding=0),
    with_header(
        Manufacturer="Philips", ManufacturerModelName="Brilliance 64", RescaleType="HU", ConvolutionKernel="YA",
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "HELIX", "ELECTRON", "UNSPECIFIED"], GantryDetectorTilt=0,
    ),
)  # fmt: skip
CANON = both(
    stored_as(0, signed=True, padding=-2048),
    with_header(
        Manufacturer="TOSHIBA", ManufacturerModelName="Aquilion ONE", ConvolutionKernel="FC51", RescaleType=None,
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], LossyImageCompression=None,
    ),
)  # fmt: skip
UNITED_IMAGING = both(
    stored_as(-8192, signed=False),
    with_header(
        Manufacturer="UIH", ManufacturerModelName="uCT 780", ConvolutionKernel="B_SHARP_C", RescaleType="HU",
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
    ),
)  # fmt: skip
HITACHI = both(
    stored_as(0, signed=True, padding=-2000),
    with_header(
        Manufacturer="Hitachi Medical Corporation", ManufacturerModelName="ECLOS", SliceThickness=None,
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "HELICAL_CT"], BodyPartExamined="", SeriesDescription=None,
    ),
)  # fmt: skip
# Corners of 0 HU that no element declares, as in rewritten files.
UNDECLARED_CORNERS = both(stored_as(0, signed=True, padding=0), with_header(PixelPaddingValue=None))
ARCHIVE = with_header(
    Manufacturer=None, ManufacturerModelName=None, PatientName="", PatientBirthDate="", StudyDescription=None,
    ImageType=["DERIVED", "PRIMARY", "AXIAL"], DerivationDescription="De-identified; lossless compression",
    SeriesDescription=None, ProtocolName=None, BodyPartExamined=None, InstanceNumber=None, SpacingBetweenSlices=None,
    ConvolutionKernel=None, FrameOfReferenceUID=None,
)  # fmt: skip


def stated_otherwise(images: Images) -> Images:
    """A stated spacing that is half the true one, like that of detector rows, while no instance number is missing."""
    return [
        image.with_values(SpacingBetweenSlices=round(spacing_mm(images) / 2, 4), InstanceNumber=index + 1)
        for index, image in enumerate(images)
    ]

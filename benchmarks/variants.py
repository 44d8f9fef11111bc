"""Degradations that must be refused, each with its right reasons, and harmless changes that must be analysed."""

from collections.abc import Callable, Sequence

import numpy as np
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from benchmarks import contents as c
from benchmarks import degradations as d
from benchmarks import vendors as v
from benchmarks.bodies import abdomen_hu, legs_hu, lung_bases_hu, neck_hu
from benchmarks.degradations import Change, Images, Variant

_CORONAL, _SAGITTAL = [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]
_GAP = ("MISSING_SLICES", "IRREGULAR_SPACING")
_GAP_OR_FEW = ("MISSING_SLICES", "TOO_FEW_SLICES", "SLICE_SPACING")
_CUT = ("LUNG_CUT_OFF", "EXTENT", "NOT_CHEST", "TOO_FEW_SLICES")


_FIELD = ("LUNG_OUTSIDE_FIELD", "FIELD_OF_VIEW")
_STRANGERS = (
    "SLICE_ORDER",
    "HU_STEP",
    "BODY_SIZE",
    "SLICES_DO_NOT_MATCH",
    "REPEATED_SLICES",
    "NOT_CHEST",
    "LUNG_BALANCE",
    "LUNG_CUT_OFF",
    "UPSIDE_DOWN",
)
_PLACES: dict[str, Callable[[int, int], bool]] = {
    "one slice": lambda index, count: index == count // 2,
    "every third slice": lambda index, count: index % 3 == 1,
    "five slices": lambda index, count: 0 <= index - count // 2 < 5,
    "the upper half": lambda index, count: index >= count // 2,
}


def refused(name: str, change: Change, *codes: str) -> Variant:
    return Variant(name, change, frozenset(codes))


def harmless(name: str, change: Change, *, same: bool = True) -> Variant:
    return Variant(name, change, same=same)


def all_variants(others: Sequence[Images]) -> list[Variant]:
    """Every variant; `others`: further series to mix in."""
    return [*_harmless(), *_vendors(), *_lost(), *_moved(), *_mixed(others), *_headers(), *_pixels(), *_contents()]


def _harmless() -> list[Variant]:
    philips = ["DERIVED", "PRIMARY", "AXIAL", "HELIX", "ELECTRON", "UNSPECIFIED"]
    return [
        harmless("as it is", lambda images: images),
        harmless("shuffled and renamed", d.shuffled),
        harmless("numbered backwards", d.numbered_backwards),
        harmless("1 exact duplicate", d.duplicated(1)),
        harmless("5 exact duplicates", d.duplicated(5)),
        *(harmless(f"recompressed {syntax}", d.in_syntax(syntax)) for syntax in d.ENCODERS),
        harmless("recompressed RLE", d.in_syntax(RLELossless)),
        harmless("implicit VR", d.in_syntax(ImplicitVRLittleEndian)),
        harmless("as one multi-frame instance", d.enhanced),
        harmless("positions rounded", d.jittered, same=False),
        harmless("no image type", d.each(ImageType=None)),
        harmless("image type of some Philips scanners", d.each(ImageType=["ORIGINAL", *philips[1:]])),
        harmless("derived primary axial", d.each(ImageType=philips[:3])),
        harmless("no body part, no descriptions", d.each(BodyPartExamined=None, SeriesDescription=None)),
        harmless("no instance numbers", d.each(InstanceNumber=None)),
        harmless("spacing stated", lambda images: d.each(SpacingBetweenSlices=round(d.spacing_mm(images), 3))(images)),
        harmless("no thickness", d.each(SliceThickness=None)),
        harmless("no age", d.each(PatientAge=None)),
        harmless("an age that an anonymiser wrote", d.each(PatientAge="000Y")),
    ]


def _vendors() -> list[Variant]:
    return [
        harmless("as GE stores it", v.GE, same=False),
        harmless("as Philips stores it", v.PHILIPS, same=False),
        harmless("as Canon stores it", v.CANON, same=False),
        harmless("as United Imaging stores it", v.UNITED_IMAGING),
        harmless("as Hitachi stores it", v.HITACHI, same=False),
        harmless("corners of 0 HU, undeclared", v.UNDECLARED_CORNERS, same=False),
        harmless("as an archive without names stores it", v.ARCHIVE),
        harmless("intercept 0, signed", v.stored_as(0, signed=True)),
        harmless("prone, turned by 180 degrees", v.prone),
        harmless("feet first, standard orientation", v.with_header(PatientPosition="FFS")),
        harmless("matrix of 1024", v.fine_matrix, same=False),
        harmless("spacing stated otherwise", v.stated_otherwise),
        harmless("scanned twice", d.second_scan, same=False),
        harmless("scanned twice, slices in turn", d.second_scan_between, same=False),
    ]


def _lost() -> list[Variant]:
    variants = [
        refused(f"{count} interior lost, draw {seed}", d.drop(count, seed), *_GAP, "TOO_FEW_SLICES")
        for count in (1, 2, 5)
        for seed in range(3)
    ]
    variants += [
        refused(f"{count} neighbours lost at {at:.0%}", d.drop_run(count, at), *_GAP)
        for count in (1, 2, 5)
        for at in (0.0, 0.5, 0.99)
    ]
    return [
        *variants,
        refused("random half lost", d.drop_half, *_GAP, "TOO_FEW_SLICES"),
        refused("half lost in one run", lambda images: d.drop_run(len(images) // 2, 0.25)(images), *_GAP),
        refused(
            "every second lost",
            lambda images: images[::2],
            "MISSING_SLICES",
            "GAPS_BETWEEN_SLICES",
            "SLICE_SPACING",
            "TOO_FEW_SLICES",
        ),
        refused(
            "every second lost, count stated",
            _every_second_of_a_count,
            "MISSING_SLICES",
            "TOO_FEW_SLICES",
            "SLICE_SPACING",
        ),
        refused("top third lost", lambda images: images[: -(len(images) // 3)], *_CUT),
        refused("bottom third lost", lambda images: images[len(images) // 3 :], *_CUT),
        refused("top fifth lost", lambda images: images[: -(len(images) // 5)], *_CUT),
        refused("bottom quarter lost", lambda images: images[len(images) // 4 :], *_CUT),
        refused("middle third only", lambda images: images[len(images) // 3 : -(len(images) // 3)], *_CUT),
        refused("one image", d.one_image, "SINGLE_SLICE"),
        refused("three images", lambda images: images[:3], "TOO_FEW_SLICES"),
    ]


def _moved() -> list[Variant]:
    return [
        refused("spacing changes midway", d.spread_apart, "IRREGULAR_SPACING"),
        refused("other pixels at one place", d.doubled_with_other_pixels, "CONFLICTING_SLICES"),
        refused("a slice repeated elsewhere", d.repeated_elsewhere, "REPEATED_SLICES"),
        refused("positions upside down", d.upside_down, "UPSIDE_DOWN"),
        refused("positions shuffled", d.positions_shuffled, "SLICES_DO_NOT_MATCH", "NOT_CHEST", "LUNG_CUT_OFF"),
        refused("orientation of a prone patient", d.each(ImageOrientationPatient=v.PRONE), "ORIENTATION"),
        refused("orientation mirrored", d.each(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]), "ORIENTATION"),
        refused("orientation front to back", d.each(ImageOrientationPatient=[1, 0, 0, 0, -1, 0]), "ORIENTATION"),
        refused("orientation turned", d.each(ImageOrientationPatient=[0, 1, 0, -1, 0, 0]), "ORIENTATION"),
        refused("orientation coronal", d.each(ImageOrientationPatient=_CORONAL), "NOT_AXIAL", "SINGLE_SLICE"),
        refused("orientation sagittal", d.each(ImageOrientationPatient=_SAGITTAL), "NOT_AXIAL", "SINGLE_SLICE"),
        refused("one image sagittal", d.one(ImageOrientationPatient=_SAGITTAL), "MIXED_ORIENTATIONS"),
        refused("one image of other pixel spacing", d.one(PixelSpacing=[0.9, 0.9]), "MIXED_PIXEL_SPACING"),
        refused("gantry tilt in the geometry", d.sheared, "GANTRY_TILT"),
        refused("gantry tilt in the header", d.each(GantryDetectorTilt=12), "GANTRY_TILT"),
        refused("no positions", d.each(ImagePositionPatient=None), "NO_POSITION"),
        refused("coronal reformat", d.coronal, "NOT_AXIAL"),
        refused("thick slices", d.thick(12.0), "SLICE_SPACING", "TOO_FEW_SLICES"),
        refused("pixels front to back", d.pixels(lambda a: a[::-1]), "TURNED_OVER"),
        refused("pixels turned by 90 degrees", d.pixels(lambda a: a.T), "TURNED_OVER", "UPSIDE_DOWN"),
    ]


def _mixed(others: Sequence[Images]) -> list[Variant]:
    subject = ("MIXED_PATIENTS", "MIXED_FRAMES_OF_REFERENCE", "MIXED_SCANNERS")
    geometry = (
        "MIXED_RECONSTRUCTIONS",
        "MIXED_ACQUISITIONS",
        "MIXED_MATRIX",
        "MIXED_PIXEL_SPACING",
        "MISSING_SLICES",
        "IRREGULAR_SPACING",
        "CONFLICTING_SLICES",
    )
    variants = []
    for number, other in enumerate(others):
        variants.append(refused(f"mixed with series {number}", d.mixed_with(other), *subject, *geometry))
        for name, where in _PLACES.items():
            variants.append(refused(f"{name} of series {number}", d.foreign(other, where), *_STRANGERS))
        variants.append(
            refused(f"series {number} added under its UIDs", d.added_to(other), *geometry, "SIDEWAYS_SHIFT")
        )
    return variants


def _headers() -> list[Variant]:
    return [
        refused("modality MR", d.each(Modality="MR"), "MODALITY"),
        refused("class MR", d.each(SOPClassUID=d.MR_IMAGE), "NOT_CT"),
        refused("class secondary capture", d.each(SOPClassUID=d.SECONDARY_CAPTURE), "SECONDARY_CAPTURE"),
        refused("derived secondary", d.each(ImageType=["DERIVED", "SECONDARY", "AXIAL"]), "DERIVED"),
        refused("reformat by image type", d.each(ImageType=["DERIVED", "SECONDARY", "REFORMATTED"]), "DERIVED"),
        refused("projection by description", d.each(SeriesDescription="Thorax MIP 10x3"), "DERIVED"),
        refused("localizer by image type", d.each(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "LOCALIZER"),
        refused("one localizer among slices", d.one(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "LOCALIZER"),
        refused("burned-in text", d.each(BurnedInAnnotation="YES"), "BURNED_IN"),
        refused("quality control image", d.each(QualityControlImage="YES"), "QUALITY_CONTROL"),
        refused("phantom by description", d.each(SeriesDescription="Lung phantom 2.0"), "PHANTOM_OR_QA"),
        refused("daily quality assurance", d.each(StudyDescription="DAILY QA"), "PHANTOM_OR_QA"),
        refused("lossy before", d.each(LossyImageCompression="01"), "LOSSY_COMPRESSED"),
        refused("body part head", d.each(BodyPartExamined="HEAD"), "BODY_PART"),
        refused("body part abdomen", d.each(BodyPartExamined="ABDOMEN"), "BODY_PART"),
        refused("spectral map", d.each(SeriesDescription="Iodine map"), "SPECTRAL_MAP"),
        refused("no rescale", d.each(RescaleSlope=None, RescaleIntercept=None), "NO_RESCALE"),
        refused("two kernels in turn", _two_kernels, "MIXED_RECONSTRUCTIONS"),
        refused("one slice of another thickness", d.one(SliceThickness=0.4), "MIXED_RECONSTRUCTIONS"),
        refused("another rescale type", d.each(RescaleType="MGML"), "RESCALE_TYPE"),
        refused("negative slope", d.rescaled(-1, 0), "BAD_RESCALE"),
        refused("inverted grey", d.each(PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1"),
        refused("every second lost, spacing stated", _every_second_of_a_spacing, *_GAP_OR_FEW),
        refused("a file cut off", d.truncated, "CORRUPT"),
    ]


def _two_kernels(images: Images) -> Images:
    return [image.with_values(ConvolutionKernel="B70f" if n % 2 else "B30f") for n, image in enumerate(images)]


def _every_second_of_a_count(images: Images) -> Images:
    return d.each(ImagesInAcquisition=len(images), SpacingBetweenSlices=None)(d.numbered_backwards(images))[::2]


def _every_second_of_a_spacing(images: Images) -> Images:
    stated = d.each(SpacingBetweenSlices=round(d.spacing_mm(images), 4))
    return stated(d.numbered_backwards(images))[::2]


def _pixels() -> list[Variant]:
    wrong = "HU_IMPLAUSIBLE"
    return [
        *(refused(f"intercept off by {shift}", d.rescaled(1, shift), wrong) for shift in (1024, 500, -300, 150)),
        *(refused(f"slope times {slope}", d.rescaled(slope, 0), wrong) for slope in (0.5, 2.0)),
        refused("head, labelled chest", d.head, "NOT_CHEST"),
        refused("abdomen, labelled chest", d.body(abdomen_hu), "NOT_CHEST"),
        refused("abdomen with lung bases", d.body(lung_bases_hu), "LUNG_CUT_OFF", "NOT_CHEST"),
        refused("thighs, labelled chest", d.body(legs_hu), "NOT_CHEST"),
        refused("neck with the tips of the lungs", d.body(neck_hu), "LUNG_CUT_OFF", "NOT_CHEST"),
        refused("one side only", d.one_side, "MATRIX", "FIELD_OF_VIEW", "NOT_CHEST", "LUNG_BALANCE"),
        refused("whole trunk", d.trunk, "EXTENT"),
        refused("field of 200 mm", d.cropped, "MATRIX", "FIELD_OF_VIEW"),
        refused("localizer", d.localizer, "LOCALIZER"),
        refused("8-bit screenshots", d.screenshots, "EIGHT_BIT"),
        refused("8 bits in 16", d.eight_bits_in_sixteen, "QUANTISED"),
        refused("constant", d.pixels(lambda a: np.full_like(a, 1024)), "CONSTANT"),
        refused("one empty slice", d.blank_one, "BLANK_SLICES"),
        refused("small matrix", d.pixels(lambda a: a[::8, ::8]), "MATRIX"),
    ]


def _contents() -> list[Variant]:
    upper = lambda index, count: index >= count // 2  # noqa: E731
    return [
        refused("a field that cuts both lungs at the sides", c.narrow_field(0.85), *_FIELD),
        refused("a field on the middle of the chest", c.narrow_field(0.6), *_FIELD),
        refused("patient shifted by a quarter of the field", c.shifted(0.25), *_FIELD, "LUNG_BALANCE"),
        refused("patient shifted by half of the field", c.shifted(0.5), *_FIELD, "LUNG_BALANCE"),
        refused("table only", c.table_only, "NO_PATIENT"),
        refused("a child of 8 years", d.each(PatientAge="008Y"), "PATIENT_AGE"),
        refused("a child of 13 years", d.each(PatientAge="013Y"), "PATIENT_AGE"),
        refused("an infant", d.each(PatientAge="009M"), "PATIENT_AGE"),
        refused("pixel spacing of 1", c.spacing_of_one, "PIXEL_SPACING"),
        refused("pixel spacing one and a half times as wide", c.larger(1.55), "BODY_SIZE", "PIXEL_SPACING"),
        refused("both lungs dense by 450 HU", c.denser(450), "LUNG_DENSITY"),
        refused("both lungs half full of fluid", c.effusions, "PLEURAL_FLUID"),
        refused("intercept off by 24 in the upper half", c.off_scale(24, upper), "HU_STEP"),
        refused("intercept off by -24 in the upper half", c.off_scale(-24, upper), "HU_STEP"),
        *(
            refused(f"intercept off by 1024 in {name}", c.off_scale(1024, where), "HU_STEP")
            for name, where in _PLACES.items()
        ),
        *(refused(f"two neighbours swapped at {at:.0%}", c.swapped(at), "SLICE_ORDER") for at in (0.3, 0.5, 0.7)),
        *(
            refused(f"12 mm come twice at {at:.0%}", c.overlapping_breaths(at), "SLICE_ORDER")
            for at in (0.35, 0.5, 0.65)
        ),
    ]

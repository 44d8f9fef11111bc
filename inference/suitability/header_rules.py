"""What a series' header alone rules out. Vendors may leave these elements empty, so a missing one refuses nothing."""

import re
from collections.abc import Iterator

from config.reasons import ReasonCode
from inference.errors import UnsuitableSeries
from inference.finding import QualityCheck
from inference.volume.ct_volume import SeriesHeader

# Image Type values that say the images were made from others, whatever the first two values claim.
# Sources: PS3.3 C.8.2.1.1.1 and C.8.15.2, and the conformance statements of GE, Siemens, Philips and Canon.
_DERIVED_VALUES = frozenset(
    {
        "SECONDARY", "MPR", "CSA MPR", "REFORMATTED", "PROJECTION IMAGE", "CSAPARALLEL", "MIP", "MINIP", "MIN IP",
        "MAX_IP", "MIN_IP", "MEAN_IP", "VOLUME_RENDER", "SURFACE_RENDER", "CURVED_MPR",
        "MAX IP", "AVERAGE", "AVERAGE IP", "CORONAL", "SAGITTAL", "SCREEN SAVE", "SCREENSAVE", "VRT", "VOLREN", "SSD",
        "SUBTRACTION", "RESAMPLED", "MIXED", "FUSED", "OVERLAY", "RGB", "SC", "DOSE", "DOSE_INFO", "RESULT",
    }
)  # fmt: skip
# Spectral and functional maps: one number per voxel, but not the attenuation the model was trained on.
_MAP_VALUES = frozenset(
    {
        "VMI", "MONO", "MONOENERGETIC", "MONOCHROMATIC", "IODINE", "VNC", "VNUE", "Z EFF", "Z_EFF", "EFF_ATOMIC_NUM",
        "ELECTRON_DENSITY", "MATERIAL_FRACTION", "MATERIAL_MODIFIED", "MATERIAL_SPECIFIC", "MATERIAL_REMOVED",
        "VALUE_MAP", "PERFUSION", "ENERGY_PROP_WT",
    }
)  # fmt: skip
# Rescale Type: HU, or "unspecified" in the forms that the standard and older scanners use.
_HOUNSFIELD_TYPES = frozenset({"", "HU", "H.U.", "US", "UNSPECIFIED", "HOUNSFIELD", "HOUNSFIELD UNITS"})
_DERIVED_TEXT = re.compile(r"\b(MIPS?|MINIPS?|VRT|(MAX|MIN)(IMUM)? ?(IP|INTENSITY)|SUBTRACTION)\b")
_MAP_TEXT = re.compile(
    r"\b(IODINE|VNC|VIRTUAL NON|MONOE\w*|\d+ ?KEV|KEV ?\d+|Z ?EFF\w*|ELECTRON DENSITY|PBV|PERFUSION)\b"
)
# A derivation that changes no voxel: it says how the files were packed or stripped of names.
_HARMLESS_DERIVATION = re.compile(r"\bLOSSLESS|\bDE ?IDENTIF|\bANONYM|\bPSEUDONYM|\bDECOMPRESS|\bUNCOMPRESS")
_QA_TEXT = re.compile(
    r"\b(PHANTOM|CATPHAN|QA|QC|Q\.A\.|QUALITY (ASSURANCE|CONTROL)|CALIBRATION|CALIB|AIR ?CAL|WATER ?CAL|"
    r"CONSTANCY|DAILY (CHECK|QA|QC))\b"
)
_LOCALIZER_TEXT = re.compile(r"\b(SCOUT|TOPOGRAMM?|SCANOGRAM|SURVIEW|LOCALI[SZ]ER)\b")
_DOSE_TEXT = re.compile(
    r"\b(DOSE REPORT|DOSE INFO\w*|PATIENT PROTOCOL|SCREEN SAVE|SMARTPREP|BOLUS TRACK\w*)\b|^ *(PRE ?)?MONITORING\b"
)

# Whole-body and trunk scans are left to the rules on extent and pixels.
_CHEST_PARTS = re.compile(
    r"CHEST|THORA|LUNG|TORAX|BRUST|POUMON|PULM|BODY|TRUNK|TORSO|CAP\b|TAP\b|HEART|AORTA|RIB|MEDIAST"
)
_OTHER_PARTS = re.compile(
    r"HEAD|BRAIN|SKULL|NEURO|SINUS|ORBIT|\bEAR\b|JAW|MANDIB|DENTAL|FACE|NECK|SPINE|ABD|PELV|LIVER|KIDNEY|BLADDER|COLON|"
    r"HIP|FEMUR|THIGH|KNEE|LEG|ANKLE|FOOT|EXTREM|ARM|ELBOW|WRIST|HAND|FINGER|SHOULDER|HUMERUS|PROSTATE|UTERUS"
)


def check_header(header: SeriesHeader, derived_primary: bool) -> Iterator[QualityCheck]:
    """Raises UnsuitableSeries at the first rule that the header breaks; yields what holds."""
    if header.modality not in ("", "CT"):
        raise UnsuitableSeries(ReasonCode.MODALITY, "The modality is not CT.")
    if header.burned_in:
        raise UnsuitableSeries(ReasonCode.BURNED_IN, "The images have text burned into their pixels.")
    if header.quality_control:
        raise UnsuitableSeries(ReasonCode.QUALITY_CONTROL, "The images are marked as quality control images.")
    if header.lossy:
        raise UnsuitableSeries(ReasonCode.LOSSY_COMPRESSED, "The images went through lossy compression.")
    if not header.has_rescale:
        raise UnsuitableSeries(
            ReasonCode.NO_RESCALE, "Rescale slope or intercept is missing, so there are no Hounsfield units."
        )
    if header.rescale_type.upper() not in _HOUNSFIELD_TYPES:
        raise UnsuitableSeries(ReasonCode.RESCALE_TYPE, "The rescaled values are not Hounsfield units.")
    yield _check_image_type(header, derived_primary)
    _check_texts(header)
    _check_part(header.body_part.upper())
    if header.tilt_deg is not None and abs(header.tilt_deg) > 1.0:
        raise UnsuitableSeries(ReasonCode.GANTRY_TILT, f"The gantry was tilted by {header.tilt_deg:g} degrees.")


def _check_image_type(header: SeriesHeader, derived_primary: bool) -> QualityCheck:
    """Accept ORIGINAL\\PRIMARY, and DERIVED\\PRIMARY if nothing else mentions a derivation.

    Some vendors call ordinary reconstructions derived: iterative, dual-source, anonymised or losslessly recompressed
    ones. Their pixels must then pass the same rules as any others. DERIVED\\SECONDARY is always refused.
    """
    values = tuple(value.upper() for value in header.image_type)
    if not values:
        return QualityCheck("IMAGE_TYPE", "The header has no image type; geometry and pixels were relied on.")
    if "LOCALIZER" in values:
        raise UnsuitableSeries(ReasonCode.LOCALIZER, "The images are localizers.")
    words = {part for value in values for part in (value, *value.split("_"))}
    if _MAP_VALUES & (set(values) | words):
        raise UnsuitableSeries(ReasonCode.SPECTRAL_MAP, "The images are a spectral or functional map, not plain CT.")
    derived = values[0] != "ORIGINAL"
    described = header.derivation and not _HARMLESS_DERIVATION.search(_words(header.derivation))
    plain = derived_primary and values[:2] == ("DERIVED", "PRIMARY") and not described
    if _DERIVED_VALUES & set(values) or (derived and not plain):
        raise UnsuitableSeries(ReasonCode.DERIVED, "The images are derived from others, not original and primary.")
    return QualityCheck("IMAGE_TYPE", "Primary images." if derived else "Original primary images.")


def _check_texts(header: SeriesHeader) -> None:
    texts = (header.series_description, header.study_description, header.protocol_name, header.image_comments)
    joined = _words(" / ".join((*texts, header.body_part)))
    if _QA_TEXT.search(joined):
        raise UnsuitableSeries(ReasonCode.PHANTOM_OR_QA, "The descriptions speak of a phantom or of quality assurance.")
    series = _words(" / ".join((header.series_description, header.image_comments)))
    for pattern, code, sentence in (
        (_LOCALIZER_TEXT, ReasonCode.LOCALIZER, "The series is described as a localizer."),
        (_DOSE_TEXT, ReasonCode.NOT_DIAGNOSTIC, "The series is described as a report or a monitoring scan."),
        (_MAP_TEXT, ReasonCode.SPECTRAL_MAP, "The series is described as a spectral or functional map."),
        (_DERIVED_TEXT, ReasonCode.DERIVED, "The series is described as a projection or a reformat."),
    ):
        if pattern.search(series):
            raise UnsuitableSeries(code, sentence)


def _words(text: str) -> str:
    return re.sub(r"[_^\-]+", " ", text.upper())


def _check_part(part: str) -> None:
    if _OTHER_PARTS.search(part) and not _CHEST_PARTS.search(part):
        raise UnsuitableSeries(ReasonCode.BODY_PART, "The header names another part of the body than the chest.")

"""Why a series is not analysed: every code with what it means and what the site can do about it.

The codes are stable: reports, the index and `docs/safety.md` carry them. To add one, add its member here and its row in
`docs/safety.md`; a test holds the two together.
"""

from dataclasses import dataclass
from enum import StrEnum

_RESEND = "Send the whole series again."
_ORIGINAL = "Route the original reconstruction instead."
_PROTOCOL = "Route a series whose protocol fits the model card."
_WHOLE = "Route a series that shows both lungs from apex to base."
_ROUTING = "Change the PACS's routing rule, so that this kind of series is not sent."
_READ = "Read the images: the model was not made for such lungs."
_OTHER = "Read the images, or route another reconstruction of the scan."
_HEADER = "Ask whoever operates the scanner or the archive: the header is wrong or incomplete."
_MAKER = "Try the model with `dicom-node models check` and show its maker what that prints."
_CARD = "Raise [limits] in the model's card if this machine can give that; otherwise ask the model's maker."


class ReasonCode(StrEnum):
    """A stable code. meaning: what was found. advice: what the site can do."""

    meaning: str
    advice: str

    def __new__(cls, code: str, meaning: str, advice: str) -> "ReasonCode":
        """A member whose value is its code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        member.advice = advice
        return member

    # Decided before any pixel is read: what the series is to the node.
    NOT_IMAGES = "NOT_IMAGES", "results and not CT images", "Nothing: results are kept and not analysed."
    NOT_WANTED = "NOT_WANTED", "left out by the filter of its source", "Change [[sources]] series if it was wanted."
    PASSED_OVER = "PASSED_OVER", "another series of the study is analysed", 'Set select = "all" to analyse each.'
    OWN_OBJECT = "OWN_OBJECT", "images that this node had a part in", _ROUTING
    REFUSED_INSTANCES = (
        "REFUSED_INSTANCES",
        "instances that this node refused and that did not come again",
        "Send them again, mended, or decide that the series is whole: `dicom-node series accept`.",
    )

    WITHDRAWN = (
        "WITHDRAWN",
        "images that were rejected, or given to another patient, after they had been stored",
        "Nothing, or send the corrected images; `dicom-node reanalyse` analyses these all the same.",
    )

    # Are the stored values as the scanner made them?
    MODALITY = "MODALITY", "a modality other than CT", _ROUTING
    NOT_CT = "NOT_CT", "objects that are not CT images", _ROUTING
    NO_IMAGES = "NO_IMAGES", "no images, or images without rows or columns", _RESEND
    SECONDARY_CAPTURE = "SECONDARY_CAPTURE", "secondary captures", _ORIGINAL
    COLOUR = "COLOUR", "colour images", _ORIGINAL
    EIGHT_BIT = "EIGHT_BIT", "fewer than 10 bits a pixel", _ORIGINAL
    MONOCHROME1 = "MONOCHROME1", "inverted images", _ORIGINAL
    UNSUPPORTED_BITS = "UNSUPPORTED_BITS", "pixels that do not fit in 16-bit words", _ORIGINAL
    LOSSY_COMPRESSED = "LOSSY_COMPRESSED", "images that went through lossy compression", _ORIGINAL
    LOSSY_TRANSFER_SYNTAX = (
        "LOSSY_TRANSFER_SYNTAX",
        "a transfer syntax or a stream that loses detail",
        "Let the PACS send uncompressed or lossless.",
    )
    UNSUPPORTED_TRANSFER_SYNTAX = (
        "UNSUPPORTED_TRANSFER_SYNTAX",
        "a transfer syntax that the node does not read",
        "Let the PACS send Explicit VR Little Endian.",
    )
    DEFLATED = "DEFLATED", "deflated data", "Let the PACS send Explicit VR Little Endian."
    BIG_ENDIAN = "BIG_ENDIAN", "big endian data, which is retired", "Let the PACS send Explicit VR Little Endian."
    CORRUPT_INSTANCE = "CORRUPT_INSTANCE", "a file that cannot be read or decoded", _RESEND
    TOO_LARGE = "TOO_LARGE", "more memory than is allowed", _PROTOCOL

    # Original axial images of a patient's chest?
    LOCALIZER = "LOCALIZER", "localizers", _ROUTING
    DERIVED = "DERIVED", "images derived from others", _ORIGINAL
    SPECTRAL_MAP = "SPECTRAL_MAP", "a spectral or functional map", _ORIGINAL
    NOT_DIAGNOSTIC = "NOT_DIAGNOSTIC", "a dose report or a monitoring scan", _ROUTING
    BURNED_IN = "BURNED_IN", "text burned into the pixels", _ORIGINAL
    QUALITY_CONTROL = "QUALITY_CONTROL", "quality control images", _ROUTING
    PHANTOM_OR_QA = "PHANTOM_OR_QA", "a phantom or quality assurance", _ROUTING
    PATIENT_AGE = "PATIENT_AGE", "a patient of an age that the model was not made for", _ROUTING
    BODY_PART = "BODY_PART", "another part of the body, by the header", _ROUTING

    # One regular axial stack?
    NO_POSITION = "NO_POSITION", "images without position, orientation or pixel spacing", _HEADER
    BAD_ORIENTATION = "BAD_ORIENTATION", "row and column directions that are not at right angles", _HEADER
    MIXED_SERIES = "MIXED_SERIES", "images of several series or studies", _RESEND
    MIXED_PATIENTS = "MIXED_PATIENTS", "images of several patients", _HEADER
    MIXED_FRAMES_OF_REFERENCE = "MIXED_FRAMES_OF_REFERENCE", "several frames of reference", _HEADER
    MIXED_SCANNERS = "MIXED_SCANNERS", "images of several scanner models", _HEADER
    MIXED_ORIENTATIONS = "MIXED_ORIENTATIONS", "images in several orientations", _ORIGINAL
    MIXED_MATRIX = "MIXED_MATRIX", "images with different numbers of rows or columns", _ORIGINAL
    MIXED_PIXEL_SPACING = "MIXED_PIXEL_SPACING", "images with different pixel spacings", _ORIGINAL
    MIXED_RECONSTRUCTIONS = "MIXED_RECONSTRUCTIONS", "several kernels or thicknesses", _ORIGINAL
    MIXED_ACQUISITIONS = "MIXED_ACQUISITIONS", "interleaved slices of several acquisitions", _ORIGINAL
    SINGLE_SLICE = "SINGLE_SLICE", "images at one position only", _RESEND
    NOT_AXIAL = "NOT_AXIAL", "images that are not axial", _ORIGINAL
    GANTRY_TILT = "GANTRY_TILT", "a tilted gantry", _PROTOCOL
    SIDEWAYS_SHIFT = "SIDEWAYS_SHIFT", "images that lie beside the others", _HEADER
    MISSING_SLICES = "MISSING_SLICES", "slices are missing", _RESEND
    IRREGULAR_SPACING = "IRREGULAR_SPACING", "distances between slices that differ", _RESEND
    CONFLICTING_SLICES = "CONFLICTING_SLICES", "images at one position that contradict each other", _ORIGINAL

    # The ranges of the model card.
    TOO_FEW_SLICES = "TOO_FEW_SLICES", "too few slices", _PROTOCOL
    TOO_MANY_SLICES = "TOO_MANY_SLICES", "too many slices", _PROTOCOL
    EXTENT = "EXTENT", "too little or too much of the patient from head to foot", _PROTOCOL
    SLICE_SPACING = "SLICE_SPACING", "slices too near or too far from each other", _PROTOCOL
    SLICE_THICKNESS = "SLICE_THICKNESS", "slices too thin or too thick", _PROTOCOL
    GAPS_BETWEEN_SLICES = "GAPS_BETWEEN_SLICES", "slices with unseen lung between them", _PROTOCOL
    MATRIX = "MATRIX", "an image matrix that is too small or too large", _ORIGINAL
    PIXEL_SPACING = "PIXEL_SPACING", "pixels that are too small or too large", _PROTOCOL
    FIELD_OF_VIEW = "FIELD_OF_VIEW", "a field of view that is too small or too large", _PROTOCOL
    KERNEL = "KERNEL", "a reconstruction kernel that the model was not made for", _PROTOCOL

    # Does the patient lie as the header says?
    ORIENTATION = "ORIENTATION", "pixels that contradict the orientation of the header", _HEADER
    TURNED_OVER = "TURNED_OVER", "the spine where the front should be, or images on their side", _HEADER
    UPSIDE_DOWN = "UPSIDE_DOWN", "the lungs' apex at the bottom", _HEADER
    MIRRORED = "MIRRORED", "left and right exchanged", _HEADER

    # Hounsfield units?
    NO_RESCALE = "NO_RESCALE", "no rescale slope or intercept", _HEADER
    BAD_RESCALE = "BAD_RESCALE", "a rescale slope or intercept that cannot be", _HEADER
    RESCALE_TYPE = "RESCALE_TYPE", "rescaled values that are not Hounsfield units", _ORIGINAL
    HU_IMPLAUSIBLE = "HU_IMPLAUSIBLE", "air or tissue with implausible Hounsfield units", _HEADER
    QUANTISED = "QUANTISED", "too few grey levels for CT", _ORIGINAL
    CONSTANT = "CONSTANT", "pixels that all have the same value", _RESEND
    BLANK_SLICES = "BLANK_SLICES", "empty slices", _RESEND
    HU_STEP = "HU_STEP", "Hounsfield units that jump between neighbouring slices", _HEADER
    REPEATED_SLICES = "REPEATED_SLICES", "the same pixels at several places", _RESEND

    # Both lungs, whole, of one body?
    NOT_CHEST = "NOT_CHEST", "no lungs in the images, or no windpipe", _ROUTING
    NO_PATIENT = "NO_PATIENT", "no patient in the images, or hardly any of one", _ROUTING
    BODY_SIZE = "BODY_SIZE", "a chest that is too large or too small for an adult's", _HEADER
    LUNG_DENSITY = "LUNG_DENSITY", "lungs that hold hardly any air", _READ
    PLEURAL_FLUID = "PLEURAL_FLUID", "much fluid in place of lung", _READ
    SLICE_ORDER = "SLICE_ORDER", "slices that changed places, or anatomy that comes twice", _RESEND
    SLICES_DO_NOT_MATCH = "SLICES_DO_NOT_MATCH", "neighbouring slices that do not show the same body", _RESEND
    LUNG_CUT_OFF = "LUNG_CUT_OFF", "lungs that reach over the first or the last slice", _WHOLE
    LUNG_BALANCE = "LUNG_BALANCE", "one lung much smaller than the other", "Read the images: one lung may be missing."

    # After the segmentation: is the mask lung, and all of it?
    NO_LUNG_MASK = "NO_LUNG_MASK", "no lung found by the network", _OTHER
    LUNG_VOLUME = "LUNG_VOLUME", "a lung volume outside the range of the model card", _READ
    LUNG_OUTSIDE_FIELD = (
        "LUNG_OUTSIDE_FIELD",
        "lungs that reach over the side of the images",
        "Route a reconstruction whose field of view shows the whole chest.",
    )
    MASK_FRAGMENTED = "MASK_FRAGMENTED", "a lung mask in many small pieces", _OTHER
    MASK_MISSES_LUNG = "MASK_MISSES_LUNG", "a lung mask that leaves out much of the air-filled lung", _OTHER
    MASK_OFF_GROUND = "MASK_OFF_GROUND", "a network that takes much for lung that is not", _OTHER
    CROP_IMPLAUSIBLE = "CROP_IMPLAUSIBLE", "an image part for the verdict that does not fit the lungs", _OTHER

    # A third party's model, in its own process: it gave no result that can be reported.
    MODEL_CRASHED = "MODEL_CRASHED", "a model whose program crashed or failed", _MAKER
    MODEL_TIMEOUT = "MODEL_TIMEOUT", "a model that took longer than its card allows", _CARD
    MODEL_MEMORY = "MODEL_MEMORY", "a model that wanted more memory than its card allows", _CARD
    MODEL_TOO_MUCH = "MODEL_TOO_MUCH", "a model that printed, wrote or answered more than it may", _MAKER
    MODEL_OUTPUT = "MODEL_OUTPUT", "an answer of a model that does not fit the images", _MAKER
    MODEL_CODE = "MODEL_CODE", "an answer of a model with an unknown code", _MAKER

    # A person's decision about the model, and not about the series.
    MODEL_SUSPENDED = (
        "MODEL_SUSPENDED",
        "a model that a person has suspended",
        "Resume it with `dicom-node models resume NAME`; with `--analyse` what came meanwhile is analysed.",
    )

    # Only in batches: there is no result.
    NO_LONGER_STORED = "NO_LONGER_STORED", "images that are no longer stored, or no longer where they were", _RESEND
    ANALYSIS_FAILED = (
        "ANALYSIS_FAILED",
        "an analysis that failed at every attempt",
        "See the reason, and create the batch again: only what has no result is analysed.",
    )


@dataclass(frozen=True)
class Refusal:
    """Why one series is not analysed.

    code: stable, for machines; a `ReasonCode`, or the text of one that an earlier version knew.
    sentence: for a person: what was seen and what was needed. No patient data.
    """

    code: str
    sentence: str

"""What the node offers as an acceptor, and how proposals are answered."""

from collections.abc import Iterable, Mapping

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedSRStorage,
    KeyObjectSelectionDocumentStorage,
    LegacyConvertedEnhancedCTImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from config.settings import ImageClass
from dicom_node.receiver.acse import (
    ABSTRACT_SYNTAX_UNKNOWN,
    ACCEPTED,
    TRANSFER_SYNTAXES_UNKNOWN,
    VERIFICATION,
    Context,
    Proposal,
)

IMAGES: Mapping[ImageClass, str] = {
    "ct": str(CTImageStorage),
    "enhanced-ct": str(EnhancedCTImageStorage),
    "legacy-enhanced-ct": str(LegacyConvertedEnhancedCTImageStorage),
}
IMAGE_CLASSES = frozenset(IMAGES.values())
# What the node itself makes, for a PACS that routes everything back.
RESULT_CLASSES = frozenset(
    map(
        str,
        (
            Comprehensive3DSRStorage,
            ComprehensiveSRStorage,
            EnhancedSRStorage,
            KeyObjectSelectionDocumentStorage,
            SecondaryCaptureImageStorage,
            SegmentationStorage,
        ),
    )
)
KEY_OBJECTS = str(KeyObjectSelectionDocumentStorage)
"""The class of rejection notes."""
STORAGE_CLASSES = IMAGE_CLASSES | RESULT_CLASSES
EXPLICIT_VR, IMPLICIT_VR = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)
# Lossless only, because the analysis measures HU. Deflated is left out: a megabyte of it can be gigabytes.
_COMPRESSED = (
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
)
# These hold lossless streams as well as lossy ones; the analysis looks at the stream and refuses a lossy one.
_GENERAL = frozenset(map(str, (JPEG2000, JPEGLSNearLossless, HTJ2K)))
TRANSFER_SYNTAXES = frozenset((EXPLICIT_VR, IMPLICIT_VR, *map(str, _COMPRESSED))) | _GENERAL

Offer = Mapping[str, frozenset[str]]
"""Transfer syntaxes by abstract syntax."""


def offer(classes: Iterable[ImageClass]) -> Offer:
    """What a sender may propose that may store these classes."""
    wanted = frozenset(classes)
    stored = {uid: TRANSFER_SYNTAXES for name, uid in IMAGES.items() if name in wanted}
    if "results" in wanted:
        stored |= dict.fromkeys(RESULT_CLASSES, TRANSFER_SYNTAXES)
    if "rejections" in wanted:
        stored[KEY_OBJECTS] = TRANSFER_SYNTAXES
    return {**stored, VERIFICATION: frozenset((EXPLICIT_VR, IMPLICIT_VR))}


OFFERED = offer(IMAGES)


def negotiate(proposals: Iterable[Proposal], offered: Offer = OFFERED) -> tuple[Context, ...]:
    """Answer each proposal."""
    return tuple(_answer(proposal, offered.get(proposal.abstract_syntax)) for proposal in proposals)


def _answer(proposal: Proposal, known: frozenset[str] | None) -> Context:
    """Of the transfer syntaxes that both sides know, the one that the requestor names first.

    Two rules come first. Explicit VR goes before implicit, which loses the VR of private elements. A syntax that is
    always lossless goes before one that may be lossy, for which a sender might compress. Among the rest the
    requestor's order is best: a sender that names a compressed syntax first mostly holds the images in it.
    """
    both = [syntax for syntax in proposal.transfer_syntaxes if known is not None and syntax in known]
    agreed = next((syntax for syntax in both if syntax not in _GENERAL), both[0] if both else "")
    if agreed == IMPLICIT_VR and EXPLICIT_VR in proposal.transfer_syntaxes:
        agreed = EXPLICIT_VR
    result = ABSTRACT_SYNTAX_UNKNOWN if known is None else ACCEPTED if agreed else TRANSFER_SYNTAXES_UNKNOWN
    return Context(proposal.context_id, proposal.abstract_syntax, agreed, result)

"""What the node offers as an acceptor, and how proposals are answered."""

from collections.abc import Iterable, Mapping

from pydicom.uid import (
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    Verification,
)

from config.settings import ImageClass
from dicom_node.receiver.acse import ABSTRACT_SYNTAX_UNKNOWN, ACCEPTED, TRANSFER_SYNTAXES_UNKNOWN, Context, Proposal

CLASSES: Mapping[ImageClass, str] = {
    "ct": str(CTImageStorage),
    "enhanced-ct": str(EnhancedCTImageStorage),
    "legacy-enhanced-ct": str(LegacyConvertedEnhancedCTImageStorage),
}
STORAGE_CLASSES = frozenset(CLASSES.values())
VERIFICATION = str(Verification)
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
TRANSFER_SYNTAXES = frozenset((EXPLICIT_VR, IMPLICIT_VR, *map(str, _COMPRESSED)))

Offer = Mapping[str, frozenset[str]]
"""Transfer syntaxes by abstract syntax."""


def offer(classes: Iterable[ImageClass]) -> Offer:
    """What a sender may propose that may store these classes."""
    stored = {CLASSES[name]: TRANSFER_SYNTAXES for name in classes}
    return {**stored, VERIFICATION: frozenset((EXPLICIT_VR, IMPLICIT_VR))}


OFFERED = offer(CLASSES)


def negotiate(proposals: Iterable[Proposal], offered: Offer = OFFERED) -> tuple[Context, ...]:
    """Answer each proposal."""
    return tuple(_answer(proposal, offered.get(proposal.abstract_syntax)) for proposal in proposals)


def _answer(proposal: Proposal, known: frozenset[str] | None) -> Context:
    """Of the transfer syntaxes that both sides know, the one that the requestor names first.

    But explicit VR before implicit, which loses the VR of private elements. Of several, no other is better for
    certain: a sender that names a compressed one first mostly holds the images in it.
    """
    agreed = "" if known is None else next((s for s in proposal.transfer_syntaxes if s in known), "")
    if agreed == IMPLICIT_VR and EXPLICIT_VR in proposal.transfer_syntaxes:
        agreed = EXPLICIT_VR
    result = ABSTRACT_SYNTAX_UNKNOWN if known is None else ACCEPTED if agreed else TRANSFER_SYNTAXES_UNKNOWN
    return Context(proposal.context_id, proposal.abstract_syntax, agreed, result)

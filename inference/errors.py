"""The errors that `inference` raises on purpose."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from config.reasons import ReasonCode, Refusal


class InferenceError(Exception):
    """Base of the errors of this package."""


class ModelError(InferenceError):
    """A model card or a weights file is missing, altered or of another architecture."""


class DeviceLost(InferenceError):
    """A GPU computes no more for this process; a new one may find it again. The message quotes no patient data."""


class CorruptInstance(InferenceError):
    """A stored file cannot be read or decoded; the message names the SOP Instance UID."""


class EndsDecoder(CorruptInstance):
    """A stored file whose pixels crash the decoder, or keep it for longer than it may take."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Where the pixels of a refused volume show the reason, on the grid of its upright copy.

    z: the slice that shows it best; None means any slice through the lungs.
    box: rows and columns of the image part that is in question.
    lungs: bool (Z, Y, X), what is lung.  suspect: bool (Z, Y, X), what the network took for lung and is not.
    """

    z: int | None = None
    box: tuple[slice, slice] | None = None
    lungs: npt.NDArray[np.bool_] | None = None
    suspect: npt.NDArray[np.bool_] | None = None


class UnsuitableSeries(InferenceError):
    """The series cannot be analysed, and trying again will not help.

    sentence: one English sentence for a person: what was found and what was needed. No patient data.
    evidence: what a picture can show of it; None if the reason is not in the pixels.
    """

    def __init__(self, code: ReasonCode, sentence: str, evidence: Evidence | None = None) -> None:
        super().__init__(f"{code}: {sentence}")
        self.refusal = Refusal(code, sentence)
        self.evidence = evidence

    @property
    def code(self) -> str:
        """The stable code of the reason."""
        return self.refusal.code

    @property
    def sentence(self) -> str:
        """The reason in words."""
        return self.refusal.sentence

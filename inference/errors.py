"""The errors that `inference` raises on purpose."""

from config.reasons import ReasonCode, Refusal


class InferenceError(Exception):
    """Base of the errors of this package."""


class ModelError(InferenceError):
    """A model card or a weights file is missing, altered or of another architecture."""


class CorruptInstance(InferenceError):
    """A stored file cannot be read or decoded; the message names the SOP Instance UID."""


class UnsuitableSeries(InferenceError):
    """The series cannot be analysed, and trying again will not help.

    sentence: one English sentence for a person: what was found and what was needed. No patient data.
    """

    def __init__(self, code: ReasonCode, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.refusal = Refusal(code, sentence)

    @property
    def code(self) -> str:
        """The stable code of the reason."""
        return self.refusal.code

    @property
    def sentence(self) -> str:
        """The reason in words."""
        return self.refusal.sentence

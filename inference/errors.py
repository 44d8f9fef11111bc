"""Everything that `inference` raises on purpose."""


class InferenceError(Exception):
    """Base of the errors of this package."""


class ModelError(InferenceError):
    """A model card or a weights file is missing, altered or of another architecture."""


class CorruptInstance(InferenceError):
    """A stored file cannot be read or decoded; the message names the SOP Instance UID."""


class UnsuitableSeries(InferenceError):
    """The series cannot be analysed, and trying again will not help.

    code: stable machine-readable reason, upper case with underscores, such as "MISSING_SLICES".
    sentence: one English sentence for a person: what was seen, what was needed. No patient data.
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code
        self.sentence = sentence

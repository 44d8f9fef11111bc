"""What the watches see of one result: facts, never who the patient is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from storage.watch_facts import Facts


@dataclass(frozen=True, kw_only=True)
class Study(Facts):
    """The facts of one result, and how it was served. A number that is not known is None, an unknown word is "".

    when: the time of the result, with a time zone.  manufacturer, scanner_model, kernel, software: as the header has
    them.  thickness_mm, spacing_mm, pixel_mm: slice thickness, distance between slices, width of a pixel.  kv, mas:
    tube voltage, and exposure in mAs.  hu_air, hu_trachea, hu_lung: median HU of the air around the patient, of the
    trachea and of the lungs.  noise_hu: SD of the air in the trachea, or what the node measures instead.  positive:
    whether the probability reaches the threshold.  reason: the ReasonCode if the series was not analysed, else "".
    turnaround_s: from the last instance to the result's acknowledgement by the PACS.  queue_s: from being queued to
    the analysis that gave the result.  retried: the analysis or a delivery was tried more than once.  undelivered: a
    destination did not take the result, and it is not tried again.
    """

    when: datetime
    sex: str = ""
    reason: str = ""
    turnaround_s: float | None = None
    queue_s: float | None = None
    retried: bool = False
    undelivered: bool = False

    @property
    def accepted(self) -> bool:
        """Whether the series was analysed."""
        return not self.reason

    @cached_property
    def device(self) -> str:
        """The scanner without its kernel: "SIEMENS SOMATOM Force"; "" if the header names none."""
        return f"{self.manufacturer} {self.scanner_model}".strip()

    @cached_property
    def scanner(self) -> str:
        """What has a reference of its own: "SIEMENS SOMATOM Force, Br40d"."""
        return f"{self.device}, {self.kernel}" if self.kernel else self.device


Number = Callable[[Study], float | None]
Word = Callable[[Study], str]

# What is compared as a distribution, by the name of the fact.
ACQUISITION: Mapping[str, Number] = {
    "thickness_mm": lambda study: study.thickness_mm,
    "spacing_mm": lambda study: study.spacing_mm,
    "pixel_mm": lambda study: study.pixel_mm,
    "kv": lambda study: study.kv,
    "mas": lambda study: study.mas,
    "age_years": lambda study: study.age_years,
}
# What is followed from study to study.
MEASURED: Mapping[str, Number] = {
    "hu_air": lambda study: study.hu_air,
    "hu_trachea": lambda study: study.hu_trachea,
    "hu_lung": lambda study: study.hu_lung,
    "noise_hu": lambda study: study.noise_hu,
    "lung_volume_ml": lambda study: study.lung_volume_ml,
}
NUMBERS: Mapping[str, Number] = {
    **ACQUISITION,
    **MEASURED,
    "probability": lambda study: study.probability,
    "turnaround_s": lambda study: study.turnaround_s,
    "queue_s": lambda study: study.queue_s,
}
# A kernel and a software version are those of a scanner: one that a second scanner gets is new, too.
WORDS: Mapping[str, Word] = {
    "scanner": lambda study: study.device,
    "kernel": lambda study: study.scanner if study.kernel else "",
    "software": lambda study: f"{study.device}, {study.software}" if study.software else "",
    "sex": lambda study: study.sex,
}


def numbers(studies: list[Study], fact: str) -> list[float]:
    """The known values of a fact, in the order of the studies."""
    return [value for study in studies if (value := NUMBERS[fact](study)) is not None]


def words(studies: list[Study], fact: str) -> dict[str, int]:
    """How often each known word of a fact occurs."""
    counts: dict[str, int] = {}
    for study in studies:
        if word := WORDS[fact](study):
            counts[word] = counts.get(word, 0) + 1
    return counts

"""What the node refuses of a model's output, before a report could be made of it."""

from collections.abc import Sequence

import numpy as np

from config.coding import is_positive
from inference.plug import FindingByCode, Output
from inference.volume.ct_volume import CTVolume


def check_output(output: Output, volume: CTVolume) -> None:
    """Raise ValueError, naming what is wrong, if the node cannot report this output of this volume."""
    shape = volume.hu.shape
    titles = [segment.title for segment in output.segments]
    if len(set(titles)) < len(titles):
        raise ValueError("segments: two have the same title")
    _require_texts(output)
    for segment in output.segments:
        _require_array(f"segment {segment.title}", segment.mask, np.dtype(bool), shape)
    if output.heat is not None:
        _require_array("heat", output.heat, np.dtype(np.uint8), shape)
    if output.slices is not None and not 0 <= output.slices[0] <= output.slices[1] < shape[0]:
        raise ValueError(f"slices: expected two of 0 to {shape[0] - 1}, the lower first; found {output.slices}")
    _require_known("a segment", titles, [(item.concept.meaning, item.segment) for item in output.measurements])
    _require_known("a segment", titles, [(item.title, item.segment) for item in output.findings])
    names = [algorithm.name for algorithm in output.algorithms]
    _require_known("an algorithm", names, [(item.title, item.algorithm or None) for item in output.findings])
    _require_known("an algorithm", names, [(item.title, item.algorithm or None) for item in output.segments])
    if not output.measurements and not output.findings:
        raise ValueError("the output has neither a measurement nor a finding")
    _require_no_contradiction(output.findings)


def _require_no_contradiction(findings: Sequence[FindingByCode]) -> None:
    """A finding agrees with its own threshold, and no two say different things of one concept in one place."""
    said: dict[tuple[object, ...], FindingByCode] = {}
    for finding in findings:
        if _is_on_other_side(finding):
            raise ValueError(
                f"{finding.title}: {finding.interpretation.meaning} at {finding.certainty} contradicts its own "
                f"threshold of {finding.threshold}"
            )
        codes = (finding.concept, finding.site, finding.laterality)
        about = (*(code and (code.value, code.scheme) for code in codes), finding.segment)
        former = said.setdefault(about, finding)
        if not former.interpretation.is_same(finding.interpretation):
            raise ValueError(f"{finding.title} and {former.title} contradict each other")


def _is_on_other_side(finding: FindingByCode) -> bool:
    positive = is_positive(finding.interpretation)
    if positive is None or finding.certainty is None or finding.threshold is None:
        return False
    return positive != (finding.certainty >= finding.threshold)


def _require_texts(output: Output) -> None:
    """What a report names or says is not empty, and no backslash parts a name in two: DICOM allows neither."""
    named = [("a segment's title", segment.title) for segment in output.segments]
    named += [("a segment's label", segment.label or segment.title) for segment in output.segments]
    named += [("a finding's title", finding.title) for finding in output.findings]
    for one in output.algorithms:
        named += [("an algorithm's name", one.name), ("an algorithm's contribution", one.contribution)]
        named += [("an algorithm's parameter", parameter) for parameter in one.parameters]
    for what, text in named:
        if "\\" in text:
            raise ValueError(f"{what} has a backslash: {text!r}")
    said = (*output.statements, *output.remarks, *(text for segment in output.segments for text in segment.comments))
    for what, text in (*named, *(("a sentence", sentence) for sentence in said)):
        if not text.strip():
            raise ValueError(f"{what} is empty")


def _require_known(what: str, known: list[str], named: list[tuple[str, str | None]]) -> None:
    for title, name in named:
        if name is not None and name not in known:
            raise ValueError(f"{title}: names {what} {name!r}, which the output lacks")


def _require_array(name: str, array: object, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name}: expected {dtype} {shape}, the grid of the volume; found {found}")

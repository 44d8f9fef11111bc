"""What the plug accepts from a model, and what it refuses before a report could be made of it."""

from dataclasses import replace

import numpy as np
import pytest

from inference.finding import Spread
from inference.output_check import check_output
from inference.plug import (
    NEGATIVE,
    POSITIVE,
    Algorithm,
    Code,
    FindingByCode,
    Histogram,
    Measurement,
    Output,
    Qualifier,
    Segment,
)
from inference.volume.ct_volume import CTVolume

VOLUME = CTVolume(np.zeros((4, 6, 5), np.int16), (1.0, 1.0, 1.0), np.eye(4), (), "1.2", "1.3")
ORGAN = Code("91723000", "SCT", "Anatomical Structure")
LUNG = Code("39607008", "SCT", "Lung")
MILLILITRE = Code("mL", "UCUM", "milliliter")
VOLUME_CODE = Code("118565006", "SCT", "Volume")
MEASURED = Measurement(VOLUME_CODE, 4.0, MILLILITRE, LUNG, segment="Lungs")
LUNGS = Segment("Lungs", np.ones((4, 6, 5), bool), ORGAN, LUNG, "anatomy", algorithm="thresholds")
OUTPUT = Output(
    measurements=(MEASURED,), segments=(LUNGS,), algorithms=(Algorithm("thresholds", "Lung mask"),), heat=None
)
SIGN = FindingByCode("Nodules", Code("427359005", "SCT", "Solitary nodule of lung"), POSITIVE, segment="Lungs")


def test_an_output_that_fits_its_volume_passes():
    check_output(OUTPUT, VOLUME)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"segments": (replace(LUNGS, mask=np.ones((4, 6, 4), bool)),)}, r"segment Lungs: .*\(4, 6, 5\)"),
        ({"segments": (replace(LUNGS, mask=np.ones((4, 6, 5), np.uint8)),)}, "segment Lungs: expected bool"),
        ({"segments": (LUNGS, LUNGS)}, "same title"),
        ({"segments": ()}, "names a segment 'Lungs'"),
        ({"algorithms": ()}, "names an algorithm 'thresholds'"),
        ({"heat": np.zeros((4, 6, 5), np.float32)}, "heat: expected uint8"),
        ({"measurements": ()}, "neither a measurement nor a finding"),
        ({"measurements": (replace(MEASURED, segment=""),)}, "names a segment ''"),
        ({"slices": (1, 4)}, "slices: expected two of 0 to 3"),
        ({"slices": (3, 1)}, "slices: expected two of 0 to 3"),
        ({"remarks": (" ",)}, "a sentence is empty"),
        ({"segments": (replace(LUNGS, title=""),)}, "a segment's title is empty"),
        ({"segments": (replace(LUNGS, label="right\\left"),)}, "a segment's label has a backslash"),
        ({"algorithms": (Algorithm("thresholds", "a\\b"),)}, "an algorithm's contribution has a backslash"),
        ({"findings": (SIGN, replace(SIGN, interpretation=NEGATIVE))}, "contradict each other"),
        ({"findings": (replace(SIGN, certainty=0.9, threshold=0.5, interpretation=NEGATIVE),)}, "its own threshold"),
        ({"findings": (replace(SIGN, certainty=0.4, threshold=0.5),)}, "its own threshold"),
    ],
)
def test_an_output_that_does_not_fit_is_refused_by_name(wrong, said):
    with pytest.raises(ValueError, match=said):
        check_output(replace(OUTPUT, **wrong), VOLUME)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_measurement_is_a_finite_number(value):
    with pytest.raises(ValueError, match="finite"):
        Measurement(VOLUME_CODE, value, MILLILITRE)
    with pytest.raises(ValueError, match="finite"):
        Qualifier(VOLUME_CODE, value, MILLILITRE)


@pytest.mark.parametrize("decimals", [-3, 11, 1 << 40])
def test_a_measurement_has_as_many_decimals_as_a_report_can_state(decimals):
    with pytest.raises(ValueError, match="decimals"):
        Measurement(VOLUME_CODE, 1.0, MILLILITRE, decimals=decimals)


@pytest.mark.parametrize("colour", [(101.0, 0.0, 0.0), (50.0, 0.0, -129.0)])
def test_a_colour_is_one_of_cielab(colour):
    with pytest.raises(ValueError, match="colour_lab"):
        replace(LUNGS, colour_lab=colour)


def test_a_spread_lies_between_0_and_1():
    with pytest.raises(ValueError, match="spread"):
        FindingByCode("Pneumonia", LUNG, POSITIVE, 0.5, spread=Spread(-0.1, 0.9, ()))


def test_a_unit_is_one_of_ucum():
    with pytest.raises(ValueError, match="UCUM"):
        Measurement(VOLUME_CODE, 1.0, LUNG)


@pytest.mark.parametrize("text", ["", " Lung", "x" * 65, "Lung\n", "Lung\\Liver"])
def test_a_code_has_printable_parts_of_dicoms_length(text):
    with pytest.raises(ValueError, match="meaning"):
        Code("39607008", "SCT", text)


@pytest.mark.parametrize("certainty", [-0.1, 1.1, float("nan")])
def test_a_certainty_lies_between_0_and_1(certainty):
    with pytest.raises(ValueError, match="certainty"):
        FindingByCode("Pneumonia", LUNG, POSITIVE, certainty)


def test_a_finding_is_positive_by_its_code_and_not_by_how_that_is_called():
    assert FindingByCode("f", LUNG, Code(POSITIVE.value, "SCT", "Detected")).positive is True
    assert FindingByCode("f", LUNG, NEGATIVE).positive is False
    assert FindingByCode("f", LUNG, Code("82334004", "SCT", "Indeterminate")).positive is None


def test_a_histogram_has_one_edge_more_than_counts():
    with pytest.raises(ValueError, match="edges"):
        Histogram("Density", "HU", (0.0, 1.0), (1.0, 2.0))


@pytest.mark.parametrize(
    ("edges", "counts"), [((0.0, 5e-324), (1.0,)), ((-1e308, 1e308), (1.0,)), ((0.0, 1.0), (5e-324,))]
)
def test_a_histogram_has_numbers_that_can_be_drawn(edges, counts):
    with pytest.raises(ValueError, match="size from"):
        Histogram("Density", "HU", edges, counts)

"""What the watches say of simulated hospitals: quiet while nothing changes, loud when something does."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.drift_sites import DAY, SHIFTS, START, Shift, Site
from dicom_node.watch.assessment import Assessment, Level
from dicom_node.watch.plots import draw, draw_chart, draw_distribution, draw_rate
from dicom_node.watch.reference import OTHERS, WHOLE, Reference, TooFewStudies, gathered
from dicom_node.watch.studies import Study
from dicom_node.watch.watches import assess

REFERENCE_DAYS, DAYS = 60, 35
NOW = START + (REFERENCE_DAYS + DAYS) * DAY


def stream(shift: Shift | None = None, days_ago: int = 21) -> list[Study]:
    """95 days of a hospital with 20 studies a day; a shift begins so many days before their end."""
    site = Site(20, 5, shift or Shift(), NOW - days_ago * DAY)
    return [study for of_day in site.days(0, REFERENCE_DAYS + DAYS) for study in of_day]


@pytest.fixture(scope="module")
def stable() -> list[Study]:
    return stream()


@pytest.fixture(scope="module")
def reference(stable: list[Study]) -> Reference:
    return Reference.of(stable)


def alarms(reference: Reference, studies: list[Study]) -> dict[tuple[str, str], Assessment]:
    found = assess(reference, studies, NOW)
    return {(each.watch, each.fact): each for each in found if each.level is Level.ALARM}


def test_a_reference_reads_back_equal_and_does_not_depend_on_the_order(
    stable: list[Study], reference: Reference
) -> None:
    again = Reference.from_json(reference.to_json())
    assert again == reference
    assert again.digest == reference.digest == Reference.of(stable[::-1]).digest
    assert Reference.of(stable[1:]).digest != reference.digest


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"form":2}', '{"form":1,"first":1,"last":1,"baselines":{}}'])
def test_what_is_no_reference_is_not_read(text: str) -> None:
    with pytest.raises(ValueError):
        Reference.from_json(text)


def test_a_stream_has_its_first_500_studies_and_a_scanner_its_own(reference: Reference) -> None:
    assert set(reference.baselines) == {WHOLE, "Phantom Force, Br40d", "Phantom Edge, B50f"}
    assert reference.baselines[WHOLE].studies == 500
    assert reference.baselines[WHOLE].arrived == 500 + sum(reference.baselines[WHOLE].reasons.values())


def test_scanners_with_few_studies_share_a_stream(stable: list[Study]) -> None:
    renamed = [replace(study, kernel=f"B{number % 10}f") for number, study in enumerate(stable)]
    assert set(Reference.of(renamed).baselines) == {WHOLE, OTHERS}


def test_too_few_studies_make_no_reference_and_refused_ones_do_not_count(stable: list[Study]) -> None:
    refused = [replace(study, reason="LOCALIZER") for study in stable[149:]]
    with pytest.raises(TooFewStudies, match="wait for"):
        Reference.of([study for study in stable if study.accepted][:149] + refused)
    assert not Reference.due(stable[:100], NOW)


def test_a_reference_is_due_after_60_days_or_when_each_scanner_has_500(stable: list[Study]) -> None:
    assert not Reference.due(stable[:300], START + 59 * DAY)
    assert Reference.due(stable[:300], START + 61 * DAY)
    one = [replace(study, scanner_model="Force", kernel="B") for study in stable if study.accepted]
    assert not Reference.due(one[:499], one[498].when)
    assert Reference.due(one[:500], one[499].when)


def test_a_slow_site_gathers_for_longer_and_a_study_of_1970_begins_nothing(stable: list[Study]) -> None:
    accepted = [study for study in stable if study.accepted]
    slow = [replace(study, when=START + number * DAY / 2) for number, study in enumerate(accepted[:400])]
    assert not Reference.due(slow[:149], slow[148].when)
    assert Reference.due(slow[:150], slow[149].when)
    assert Reference.of(slow).baselines[WHOLE].studies == 150
    wrong = replace(stable[0], when=START - 20_000 * DAY)
    assert gathered([wrong, *stable[:100]]) == gathered(stable[:100]) < 150
    assert not Reference.due([wrong, *stable[:300]], START + 59 * DAY)
    assert Reference.due([wrong, *stable[:300]], START + 61 * DAY)
    assert Reference.of([wrong, *stable]) == Reference.of(stable)


def test_studies_without_a_scanner_do_not_stand_for_all(stable: list[Study]) -> None:
    nameless = [
        replace(study, manufacturer="", scanner_model="", kernel="") if number % 3 else study
        for number, study in enumerate(stable)
    ]
    found = Reference.of(nameless)
    assert found.baselines[WHOLE].words["scanner"], "the reference of all has the scanners that have a name"
    assert found.baselines[OTHERS].studies > 150
    assert found.stream_of(nameless[1]) == OTHERS


def test_a_stable_stream_is_quiet_and_every_watch_answers(stable: list[Study], reference: Reference) -> None:
    found = assess(reference, stable, NOW)
    assert {each.level for each in found} == {Level.OK}
    assert len({(each.watch, each.fact, each.scanner) for each in found}) == len(found)
    watches = {"distribution", "mix", "new value", "control chart", "positive rate", "refusals", "turnaround"}
    assert watches <= {each.watch for each in found}


@pytest.mark.parametrize(
    ("shift", "watch", "fact"),
    [
        ("a new scanner", "new value", "scanner"),
        ("a sharp kernel, by its name", "new value", "kernel"),
        ("a sharp kernel under the old name", "control chart", "noise_hu"),
        ("HU 20 too high at once", "control chart", "hu_air"),
        ("prevalence 20% to 40%", "positive rate CUSUM", "positive"),
    ],
)
def test_a_planted_shift_is_found(reference: Reference, shift: str, watch: str, fact: str) -> None:
    found = alarms(reference, stream(SHIFTS[shift]))
    assert found[watch, fact].sentence


def test_one_study_of_a_new_scanner_is_enough(stable: list[Study], reference: Reference) -> None:
    found = alarms(reference, [*stable, replace(stable[-1], scanner_model="Never seen", when=NOW)])
    assert list(found) == [("new value", "scanner")]
    assert found["new value", "scanner"].scanner == "Phantom Never seen"


def test_what_is_always_refused_is_never_new(stable: list[Study]) -> None:
    captured = [
        replace(study, manufacturer="Screen", scanner_model="Workstation", kernel="None", reason="SECONDARY_CAPTURE")
        for study in stable[::4]
    ]
    everything = [*stable, *captured]
    assert not [key for key in alarms(Reference.of(everything), everything) if key[0] == "new value"]


def test_many_new_values_are_one_alarm_that_names_the_commonest(stable: list[Study], reference: Reference) -> None:
    def invented(numbers: range) -> list[Assessment]:
        late = [replace(stable[-1], scanner_model=f"Invented {number}", when=NOW) for number in numbers]
        found = assess(reference, [*stable, *late, late[-1]], NOW)
        return [one for one in found if (one.watch, one.fact, one.level) == ("new value", "scanner", Level.ALARM)]

    assert len(invented(range(10))) == 10
    (many,) = invented(range(20))
    assert many.scanner == WHOLE and "Invented 19; " in many.sentence and "and 17 more" in many.sentence
    assert [one.scanner for one in invented(range(5, 30))] == [WHOLE], "the same alarm, whatever is invented next"


def test_a_retired_scanner_is_compared_no_more_but_a_site_that_stands_still_is(
    stable: list[Study], reference: Reference
) -> None:
    retired, other = "Phantom Edge, B50f", "Phantom Force, Br40d"
    gone = [study for study in stable if study.scanner != retired or study.when < NOW - 29 * DAY]
    streams = {one.scanner for one in assess(reference, gone, NOW)}
    assert other in streams and retired not in streams
    assert {other, retired} <= {one.scanner for one in assess(reference, gone, NOW - 2 * DAY)}
    assert {other, retired} <= {one.scanner for one in assess(reference, gone, NOW + 40 * DAY)}


def test_refusals_and_slow_results_and_thick_slices_are_found(stable: list[Study], reference: Reference) -> None:
    late = NOW - timedelta(days=21)
    worse = [
        replace(study, reason="LUNG_CUT_OFF" if number % 8 == 0 else study.reason, turnaround_s=600.0, thickness_mm=5.0)
        if study.when > late
        else study
        for number, study in enumerate(stable)
    ]
    found = alarms(reference, worse)
    assert {("refusals", "LUNG_CUT_OFF"), ("turnaround", "turnaround_s"), ("distribution", "thickness_mm")} <= set(
        found
    )


def test_before_there_are_150_studies_distributions_say_so(stable: list[Study], reference: Reference) -> None:
    few = [study for study in stable if study.when <= reference.last + 2 * DAY]
    levels = {(each.watch, each.level) for each in assess(reference, few, reference.last + 2 * DAY)}
    assert {("distribution", Level.TOO_FEW), ("mix", Level.TOO_FEW), ("control chart", Level.OK)} <= levels
    assert {each.level for each in assess(reference, [], NOW)} == {Level.TOO_FEW, Level.OK}


def test_the_figures_are_drawn(stable: list[Study], reference: Reference) -> None:
    scanner = "Phantom Force, Br40d"
    drawn = [
        draw_distribution(reference, stable, NOW, "kernel"),
        draw_distribution(reference, stable, NOW, "mas", scanner),
        draw_chart(reference, stable, NOW, "hu_lung", scanner),
        draw_rate(reference, stable, NOW),
    ]
    assert all(figure["png"].startswith(b"\x89PNG") and b"<svg" in figure["svg"] for figure in drawn)


def test_no_name_from_the_network_is_in_the_name_of_a_file(
    stable: list[Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hostile = [replace(study, kernel="../../x") for study in stable]
    monkeypatch.setattr("dicom_node.watch.plots.rendered", lambda figure: {"png": b"drawn"})
    written = draw(Reference.of(hostile), hostile, tmp_path / "figures")
    assert {path.parent for path in written} == {tmp_path / "figures"}
    assert {"positive-rate.png", "kernel-0.png", "mas-1.png", "noise_hu-1-chart.png"} <= {p.name for p in written}
    assert [path.read_bytes() for path in written] == [b"drawn"] * len(written)

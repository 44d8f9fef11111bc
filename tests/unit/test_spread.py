"""How far harmless changes move a verdict: which ones, and when they are tried."""

import numpy as np
import pytest

from inference.arrays import Box
from inference.covid.card import read_zheng_card
from inference.covid.spread import changed, changed_inputs, spread_of
from inference.covid.verdict_input import decovnet_input
from inference.finding import Spread
from inference.models.cards import shipped_folder
from inference.models.profile import Change

CARD = read_zheng_card(shipped_folder() / "zheng2020-authors")
BOX = slice(2, 9), slice(10, 20), slice(5, 30)


@pytest.mark.parametrize(
    ("change", "descending", "z", "y"),
    [
        ("one row higher", False, (2, 9), (9, 19)),
        ("one row lower", False, (2, 9), (11, 21)),
        ("without its lowest slice", False, (3, 9), (10, 20)),
        ("without its lowest slice", True, (2, 8), (10, 20)),
        ("without its highest slice", False, (2, 8), (10, 20)),
        ("without its highest slice", True, (3, 9), (10, 20)),
    ],
)
def test_a_change_moves_the_part_by_one_row_or_takes_one_slice(
    change: Change, descending: bool, z: tuple[int, int], y: tuple[int, int]
) -> None:
    assert changed(BOX, change, 32, descending) == (slice(*z), slice(*y), BOX[2])


@pytest.mark.parametrize(("change", "y"), [("one row higher", (0, 31)), ("one row lower", (1, 32))])
def test_a_part_that_is_the_whole_image_stays_within_it(change: Change, y: tuple[int, int]) -> None:
    whole: Box = (slice(0, 9), slice(0, 32), slice(0, 32))
    assert changed(whole, change, 32, False)[1] == slice(*y)


def test_every_change_of_the_card_is_judged_on_the_verdict_s_own_part() -> None:
    assert CARD.spread is not None
    grey = np.random.default_rng(1).integers(0, 255, (40, 64, 64), dtype=np.uint8)
    raw = np.zeros(grey.shape, np.uint8)
    raw[5:35, 20:40, 10:50] = 1
    image, _ = decovnet_input(grey, raw, CARD.profile)
    found = list(changed_inputs(grey, raw, CARD.profile, CARD.spread))
    assert tuple(change for change, _, _ in found) == CARD.spread.changes
    assert all(part.shape == mask.shape for _, part, mask in found)
    seen = [part for _, part, _ in found]
    spread = spread_of(0.55, iter((0.45, 0.6, 0.3, 0.5)), CARD.spread)
    assert (spread.low, spread.high, spread.changes) == (0.3, 0.6, CARD.spread.changes)
    assert np.array_equal(seen[0][:, 1:], image[:, :-1]) and np.array_equal(seen[1][:, :-1], image[:, 1:])
    assert np.array_equal(seen[2], image[1:]) and np.array_equal(seen[3], image[:-1])


@pytest.mark.parametrize(
    ("low", "high", "straddles"), [(0.4, 0.6, True), (0.5, 0.6, False), (0.4, 0.5, True), (0.2, 0.49, False)]
)
def test_a_spread_straddles_the_threshold_if_the_sign_depends_on_it(low: float, high: float, straddles: bool) -> None:
    assert Spread(low, high, ()).straddles(0.5) == straddles


@pytest.mark.parametrize(("probability", "tried"), [(0.05, False), (0.1, True), (0.9, True), (0.97, False)])
def test_nothing_is_tried_outside_the_card_s_band(probability: float, tried: bool) -> None:
    assert CARD.spread is not None
    assert CARD.spread.applies(probability) == tried

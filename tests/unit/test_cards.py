"""Model cards: what ships reads, what is wrong is named with its key and file."""

from pathlib import Path

import pytest

from inference.covid.card import read_zheng_card
from inference.errors import ModelError
from inference.models.cards import Card, read_card, shipped_folder, write_card
from inference.models.toml_fields import plain

SHIPPED = ["zheng2020-authors", "zheng2020-paper", "demonstration"]
AUTHORS = (shipped_folder() / "zheng2020-authors" / "card.toml").read_text(encoding="utf-8")


def read_text(text: str, folder: Path) -> Card:
    (folder / "card.toml").write_text(text, encoding="utf-8")
    return read_card(folder)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_that_is_written_reads_back_the_same(name: str, tmp_path: Path) -> None:
    card = read_card(shipped_folder() / name)
    write_card(card, tmp_path)
    assert plain(read_card(tmp_path)) == plain(card)
    assert read_card(tmp_path).digest() == card.digest()


def test_the_authors_card_holds_every_step_of_their_code() -> None:
    profile = read_zheng_card(shipped_folder() / "zheng2020-authors").profile
    assert profile.slices.lung_range == (0.2, 0.7) and profile.slices.verdict_range == (0.15, 1.0)
    assert profile.unet.statistics == profile.decovnet.statistics == "batch"
    assert profile.slices.spacing_mm == 1.0 and profile.unet.size == (512, 512)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("threshold = 0.5", "threshold = 1.5", "threshold"),
        ("window_hu = [-1200, 600]", "window_hu = [600, -1200]", "profile.intensity: window_hu"),
        ("window_hu = [-1200, 600]", 'window_hu = "lung"', "profile.intensity.window_hu"),
        ('crop = "mask-box"', 'crop = "box"', "profile.decovnet.crop"),
        ("spacing_mm = 1.0", "spacing = 1.0", "profile.slices.spacing"),
        ('version = "1.0"', "", "version: missing"),
        ('file = "unet.safetensors"', 'file = "../unet.safetensors"', "file"),
        ('name = "zheng', 'name = zheng"', "not a TOML file"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_file(before: str, after: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        read_text(AUTHORS.replace(before, after, 1), tmp_path)
    assert named in str(error.value) and str(tmp_path / "card.toml") in str(error.value)


def test_a_missing_card_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_card(tmp_path / "none")


def test_the_digest_follows_preprocessing_and_weights_and_not_the_wording(tmp_path: Path) -> None:
    digest = read_text(AUTHORS, tmp_path).digest()
    assert read_text(AUTHORS.replace('title = "', 'title = "A '), tmp_path).digest() == digest
    assert read_text(AUTHORS.replace("radius_px = 253", "radius_px = 252"), tmp_path).digest() != digest

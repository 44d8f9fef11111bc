"""`models` and `config check`: what a model is, whether it works here, and what its licence forbids."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicom_node.cli.app import app
from inference.errors import ModelError
from inference.models.cards import read_card, shipped_folder
from inference.models.kinds import find_kind, kinds

LICENCE = "CC BY-NC-SA 4.0"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with one imported model that is for non-commercial use only."""
    folder = shutil.copytree(shipped_folder() / "demonstration", tmp_path / "models" / "research")
    card = (folder / "card.toml").read_text().replace('name = "demonstration"', 'name = "research"', 1)
    (folder / "card.toml").write_text(f"non_commercial = true\n{card}".replace("that of this repository", LICENCE))
    monkeypatch.setenv("DICOM_NODE_DATA_DIR", str(tmp_path))
    return tmp_path


def said(*command: str) -> str:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_non_commercial_licence_is_overlooked_nowhere(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"research 2.0: NON-COMMERCIAL USE ONLY ({LICENCE})" in said("models", "list")
    assert "NON-COMMERCIAL" in said("models", "show", "research")
    assert "NON-COMMERCIAL" not in said("config", "check"), "it is not in use"
    monkeypatch.setenv("DICOM_NODE_MODEL__NAME", "research")
    assert f"model research 2.0: NON-COMMERCIAL USE ONLY ({LICENCE})" in said("config", "check")


def test_the_authors_card_says_that_it_is_non_commercial() -> None:
    assert [path.name for path in shipped_folder().iterdir() if read_card(path).non_commercial] == ["zheng2020-authors"]


@pytest.mark.parametrize(
    ("licence", "forbidden"),
    [
        ("CC-BY-NC-4.0", True),
        ("Weights: for noncommercial research", True),
        ("CC BY 4.0", False),
        ("that of SYNC and NCBI", False),
    ],
)
def test_a_licence_forbids_commercial_use_by_its_words_alone(licence: str, forbidden: bool) -> None:
    card = read_card(shipped_folder() / "demonstration")
    assert not card.non_commercial
    assert replace(card, licence=licence).non_commercial is forbidden


@pytest.mark.parametrize(("name", "number"), [("demonstration", 9001), ("densitometry", 9011)])
def test_a_model_is_checked_down_to_its_report(
    name: str, number: int, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOM_NODE_MODELS", '[{"name": "demonstration"}, {"name": "densitometry"}]')
    steps = json.loads(said("models", "check", name, "--json"))
    assert [step["what"] for step in steps] == ["card", "weights", "licence", "run on a phantom", "report"]
    assert all(step["passed"] for step in steps)
    assert steps[-1]["found"].startswith(f"series {number}, "), "each model's objects have numbers of their own"


def test_altered_weights_fail_the_check(data_dir: Path) -> None:
    weights = data_dir / "models" / "research" / "unet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = CliRunner().invoke(app, ["models", "check", "research"])
    assert done.exit_code == 1 and "FAIL weights: unet: unet.safetensors is not the file" in done.output


def test_a_kind_that_is_not_installed_is_named(data_dir: Path) -> None:
    card = data_dir / "models" / "research" / "card.toml"
    card.write_text(card.read_text().replace('kind = "zheng2020"', 'kind = "nodules"'))
    with pytest.raises(ModelError, match="no plug-in of kind nodules is installed; there are densitometry, "):
        read_card(card.parent)


def test_a_card_of_before_kinds_is_of_the_first_one(data_dir: Path) -> None:
    card = data_dir / "models" / "research" / "card.toml"
    digest = read_card(card.parent).digest()
    card.write_text(card.read_text().replace('kind = "zheng2020"', ""))
    former = read_card(card.parent)
    assert (former.kind, former.digest()) == ("zheng2020", digest)


def test_the_kinds_of_this_package_are_its_own() -> None:
    assert {"zheng2020", "densitometry"} <= set(kinds()) and find_kind("zheng2020").own

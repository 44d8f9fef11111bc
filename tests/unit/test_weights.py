"""Import of checkpoints and loading of weights: what is altered, foreign or malicious is refused by name."""

import pickle
from pathlib import Path

import pytest
import torch

from inference.covid.decovnet import DeCoVNet
from inference.covid.weights import import_authors, load_networks
from inference.errors import ModelError
from inference.lungs.unet import UNet
from inference.models.cards import read_card
from inference.models.registry import find_model, list_models


@pytest.fixture
def checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    """Checkpoints of the right architectures, wrapped as the authors' are, with two unused tensors."""
    torch.manual_seed(0)
    unet, decovnet = tmp_path / "unet.pth", tmp_path / "decovnet.pth"
    torch.save({f"module.{k}": v for k, v in UNet().state_dict().items()}, unet)
    state = {f"module.{k}": v for k, v in DeCoVNet().state_dict().items()}
    torch.save({**state, "module.s4.x": torch.zeros(2), "module.s5.y": torch.zeros(2)}, decovnet)
    return unet, decovnet


def test_without_an_import_the_demonstration_model_is_used(tmp_path: Path) -> None:
    assert find_model(tmp_path / "models").name == "demonstration"


def test_the_authors_card_is_no_model_until_their_weights_are_imported(tmp_path: Path) -> None:
    assert [card.name for card in list_models(tmp_path)] == ["demonstration", "densitometry"]
    with pytest.raises(ModelError, match=r"no model zheng2020-authors.*models import"):
        find_model(tmp_path, "zheng2020-authors")


def test_another_file_than_the_published_one_is_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="altered or another one"):
        import_authors(*checkpoints, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_an_unverified_import_is_marked_and_becomes_the_active_model(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    card = import_authors(*checkpoints, models, allow_unverified=True)
    again = import_authors(*checkpoints, models, allow_unverified=True)
    folder = find_model(models)
    assert not card.verified and not card.identity().verified and "unverified" in card.title
    assert again.digest() == card.digest() == read_card(folder).digest()
    assert next(c.name for c in list_models(models)) == "zheng2020-authors"
    _, decovnet = load_networks(folder, read_card(folder))
    assert not any(key.startswith(("s4", "s5", "module")) for key in decovnet.state_dict())


def test_swapped_files_are_refused_as_another_architecture(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another architecture than UNet"):
        import_authors(checkpoints[1], checkpoints[0], tmp_path / "models", allow_unverified=True)


def test_a_pickle_that_would_run_code_is_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    checkpoints[0].write_bytes(pickle.dumps({"module.inc": Attack()}))
    with pytest.raises(ModelError):
        import_authors(*checkpoints, tmp_path / "models", allow_unverified=True)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["unet.safetensors", "decovnet.safetensors"])
def test_weights_altered_after_the_import_are_refused(
    checkpoints: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    import_authors(*checkpoints, tmp_path / "models", allow_unverified=True)
    folder = find_model(tmp_path / "models")
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match="altered"):
        load_networks(folder, read_card(folder))


def test_the_published_files_are_verified_and_lose_what_is_unused(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights"
    card = import_authors(weights / "unet.pth", weights / "ncov-Epoch_00140-auc95p9.pth", tmp_path)
    assert card.verified and read_card(find_model(tmp_path)).verified


def test_one_changed_byte_of_a_published_file_is_refused(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights"
    altered = bytearray((weights / "unet.pth").read_bytes())
    altered[-1000] ^= 1
    (tmp_path / "unet.pth").write_bytes(altered)
    with pytest.raises(ModelError, match=r"unet\.pth: SHA-256"):
        import_authors(tmp_path / "unet.pth", weights / "ncov-Epoch_00140-auc95p9.pth", tmp_path / "models")

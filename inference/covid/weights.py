"""Imports published checkpoints and loads weights: SHA-256 first, safetensors only, no pickle."""

import hashlib
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from inference.covid.card import ZhengCard, read_zheng_card
from inference.covid.decovnet import DeCoVNet
from inference.errors import ModelError
from inference.lungs.unet import Statistics, UNet
from inference.models.cards import Weights, require_weights, shipped_folder
from inference.models.registry import install_folder

AUTHORS = "zheng2020-authors"
WRAPPER = "module."  # torch.nn.DataParallel's prefix
UNUSED = ("s4.", "s5.")  # stages that DeCoVNet's published checkpoint holds and its forward pass never reaches
LARGEST_CHECKPOINT = 256 * 2**20

N = TypeVar("N", bound=nn.Module)


def import_authors(
    unet_file: Path, decovnet_file: Path, models_dir: Path, *, allow_unverified: bool = False
) -> ZhengCard:
    """Turn the authors' two checkpoints into a model folder and make it the active model.

    allow_unverified: accept other checkpoints of the same architectures; the model is marked unverified.
    Returns the card as written. Importing the same files twice gives the same folder.
    Raises ModelError for a file that is missing, altered, unreadable or of another architecture.
    """
    card = read_zheng_card(shipped_folder() / AUTHORS)
    unet = _converted(unet_file, card.unet, UNet(), allow_unverified)
    decovnet = _converted(decovnet_file, card.decovnet, DeCoVNet(), allow_unverified)
    card = replace(
        card,
        unet=replace(card.unet, sha256=sha256(unet[0]), checkpoint_sha256=unet[1]),
        decovnet=replace(card.decovnet, sha256=sha256(decovnet[0]), checkpoint_sha256=decovnet[1]),
    )
    if not card.verified:
        card = replace(card, title=f"{card.title} (unverified checkpoints)", operating_points=())
    install(card, unet[0], decovnet[0], models_dir)
    return card


def install(card: ZhengCard, unet: bytes, decovnet: bytes, models_dir: Path, *, activate: bool = True) -> Path:
    """Write a model's folder durably, all or nothing, and make it the active model.

    unet, decovnet: the bytes of the safetensors files. Returns the folder.
    activate: False leaves the active model unchanged; the settings must then name the new one.
    """

    def fill(folder: Path) -> None:
        (folder / card.unet.file).write_bytes(unet)
        (folder / card.decovnet.file).write_bytes(decovnet)

    return install_folder(card, models_dir, fill, activate=activate)


def load_networks(folder: Path, card: ZhengCard) -> tuple[UNet, DeCoVNet]:
    """Both networks of a model in evaluation mode on the CPU, with the statistics that the card's profile names.

    Raises ModelError if a weights file is missing, is not the one that the card pins, or does not fit.
    """
    require_weights(card, folder)
    unet = UNet(card.profile.unet.statistics)
    decovnet = DeCoVNet(card.profile.decovnet.statistics)
    return _loaded(unet, folder, card.unet), _loaded(decovnet, folder, card.decovnet)


def load_unet(path: Path, digest: str, statistics: Statistics) -> UNet:
    """A U-Net alone, in evaluation mode on the CPU. Raises ModelError as `load_networks` does."""
    return _loaded(UNet(statistics), path.parent, Weights(path.name, digest))


def save_network(network: nn.Module, path: Path) -> str:
    """Write a network's weights as safetensors and return the SHA-256 of the file."""
    content = encode(network.state_dict())
    path.write_bytes(content)
    return sha256(content)


def encode(state: dict[str, Tensor]) -> bytes:
    """The safetensors file of a state dictionary: the same bytes for the same tensors."""
    return safetensors_bytes({name: state[name].detach().cpu().contiguous() for name in sorted(state)})


def sha256(content: bytes) -> str:
    """SHA-256 hex of some bytes."""
    return hashlib.sha256(content).hexdigest()


def _converted(path: Path, pinned: Weights, network: nn.Module, allow_unverified: bool) -> tuple[bytes, str]:
    content = _read_checkpoint(path)
    digest = sha256(content)
    if digest != pinned.checkpoint_sha256 and not allow_unverified:
        raise ModelError(
            f"{path.name}: SHA-256 {digest} is not that of the published file ({pinned.checkpoint_sha256}): the file "
            "is altered or another one. An unverified import of the same architecture has to be asked for"
        )
    state = _state(content, path.name)
    _check_fit(state, network, path.name)
    return encode(state), digest


def _read_checkpoint(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_CHECKPOINT:
            raise ModelError(
                f"{path.name}: larger than {LARGEST_CHECKPOINT // 2**20} MiB, so not one of these networks"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error


def _state(content: bytes, name: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint by the networks' own names, unused stages left out."""
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(f"{name}: not a checkpoint of plain tensors that PyTorch can read") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"{name}: not a dictionary of tensors")
    stripped = {str(key).removeprefix(WRAPPER): value for key, value in loaded.items()}
    return {key: value for key, value in stripped.items() if not key.startswith(UNUSED)}


def _check_fit(state: dict[str, Tensor], network: nn.Module, name: str) -> None:
    wanted = network.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        raise ModelError(
            f"{name}: of another architecture than {type(network).__name__}: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}), {len(unknown)} are unknown ({', '.join(unknown[:3])})"
        )
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape or tensor.dtype != wanted[key].dtype:
            found, needed = (f"{tuple(t.shape)} {t.dtype}" for t in (tensor, wanted[key]))
            raise ModelError(f"{name}: {key} is {found}, {type(network).__name__} needs {needed}")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name}: {key} holds values that are not finite")


def _loaded(network: N, folder: Path, weights: Weights) -> N:
    content = (folder / weights.file).read_bytes()
    if sha256(content) != weights.sha256:
        raise ModelError(f"{folder / weights.file}: altered; its SHA-256 is not the one in the model card")
    try:
        state = read_safetensors(content)
    except SafetensorError as error:
        raise ModelError(f"{folder / weights.file}: not a safetensors file: {error}") from error
    _check_fit(state, network, weights.file)
    network.load_state_dict(state)
    return network.eval()

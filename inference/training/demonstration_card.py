"""The demonstration model's card: how its volumes are prepared, what its networks learned from, and the results."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from inference.covid.card import ZhengCard, read_zheng_card
from inference.models.cards import Weights, shipped_folder, write_card
from inference.models.profile import DecovnetInput, Intensity, Profile, Slices, UnetInput

# The paper's steps at smaller sizes; DeCoVNet sees only the lungs' bounding box.
PROFILE = Profile(
    name="demonstration",
    intensity=Intensity(window_hu=(-1200, 600)),
    slices=Slices(order="ascending"),
    unet=UnetInput(size=(256, 256), interpolation_order=3, statistics="running"),
    decovnet=DecovnetInput(size=(96, 144), interpolation_order=3, statistics="batch", crop="mask-box", mask="cleaned"),
)
UNET_FILE, DECOVNET_FILE = "unet.safetensors", "decovnet.safetensors"


def write_demonstration_card(folder: Path, training: Mapping[str, object], evaluation: Mapping[str, object]) -> Path:
    """Write the card beside the weights in `folder`.

    training, evaluation: plain figures, see `ZhengCard`.
    """
    shipped = read_zheng_card(shipped_folder() / "demonstration")
    card = ZhengCard(
        name="demonstration",
        version="2.0",
        title="Demonstration model, trained on synthetic phantoms only",
        source="python -m inference.training.demonstration; volume-level labels only",
        licence="that of this repository",
        intended_use="Demonstration of the software. Never for a patient.",
        threshold=0.5,
        precisions=("float32",),
        unet=Weights(UNET_FILE, _sha256(folder / UNET_FILE)),
        decovnet=Weights(DECOVNET_FILE, _sha256(folder / DECOVNET_FILE)),
        profile=PROFILE,
        demonstration=True,
        suitability=shipped.suitability,
        spread=shipped.spread,
        training=training,
        evaluation=evaluation,
    )
    return write_card(card, folder)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

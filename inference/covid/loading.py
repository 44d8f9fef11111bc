"""Makes a pipeline on a device from a model's folder, or from its two networks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from inference.covid.card import ZhengCard, read_zheng_card
from inference.covid.decovnet import DeCoVNet
from inference.covid.localisation import Localiser
from inference.covid.pipeline import Pipeline
from inference.covid.segmentation import Segmentation
from inference.covid.streamed import StreamedDecovnet
from inference.covid.weights import load_networks
from inference.device import Device, choose_device, lacked_memory, naming_loss
from inference.lungs.engine import BackEnd, cpu_runs, open_unet
from inference.lungs.unet import UNet
from inference.models.profile import Precision

Speed = Literal["exact", "fast"]


def load_pipeline(
    model_folder: Path,
    device: str = "auto",
    precision: Speed = "exact",
    threads: int = 0,
    back_end: BackEnd = "auto",
) -> Pipeline:
    """Load a model onto a device.

    model_folder: card and weights, see `registry.find_model`.  device: see `device.choose_device`.
    precision: "exact" is float32. "fast" lets the U-Net use the lower precisions that the card allows for the
        verdict's slices and for the others, if the device computes in them.
    threads: CPU threads, 0 for as many as there are cores.
    A GPU without room for the networks leaves them to the CPU.
    Raises ModelError if the model is missing, altered or does not fit, or if the device is not available; DeviceLost if
    the GPU failed.
    """
    card = read_zheng_card(model_folder)
    chosen = choose_device(device, threads)
    unet, decovnet = load_networks(model_folder, card)
    spare = None if chosen.kind == "cpu" else partial(load_pipeline, model_folder, "cpu", precision, threads)
    try:
        with naming_loss(chosen):
            return pipeline_of(card, unet, decovnet, chosen, precision, back_end, spare)
    except RuntimeError as error:
        if spare is None or not lacked_memory(error):
            raise
    return spare()


def pipeline_of(
    card: ZhengCard,
    unet: UNet,
    decovnet: DeCoVNet,
    device: Device,
    precision: Speed = "exact",
    back_end: BackEnd = "auto",
    spare: Callable[[], Pipeline] | None = None,
) -> Pipeline:
    """The pipeline of two networks, in evaluation mode on the CPU, and the card that describes them."""
    verdict_format = number_format(card.precisions, device, precision)
    reporting_format = number_format(card.reporting_precisions, device, precision)
    engine = open_unet(unet, device, verdict_format, back_end)
    same = reporting_format in ("float32", verdict_format)
    reporting = engine if same else open_unet(unet, device, reporting_format, back_end)
    segmentation = Segmentation(engine, reporting, card.profile, device)
    return Pipeline(card, segmentation, StreamedDecovnet(decovnet, device), Localiser(decovnet), device, spare)


def number_format(allowed: tuple[Precision, ...], device: Device, precision: Speed) -> Precision:
    """float32, or for "fast" the first other format that the card allows and the device computes in."""
    if precision == "fast":
        for candidate in allowed:
            if candidate != "float32" and (device.kind == "cuda" or cpu_runs(candidate)):
                return candidate
    return "float32"

"""A TorchScript or ONNX network: float32 (1, 1, Z, Y, X) to scores (1, labels, Z, Y, X), or to one score a voxel.

`[settings]` of the card: window_hu, scaled to 0 to 1; spacing_mm (z, y, x), to which the volume is resampled, or none;
labels, see `labels.output_of`. The network sees z towards the head, rows towards the back and columns to the left.
"""

from importlib.metadata import version

import numpy as np
from scipy.ndimage import zoom

from inference.volume.ct_volume import as_stored, upright
from segmentation_plugin.labels import output_of


def torchscript(path, device):
    """A function from array to array that runs the network."""
    import torch

    torch.set_num_threads(device.threads or torch.get_num_threads())
    place = device.device if device.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    network = torch.jit.load(path, map_location=place).eval()

    def run(array):
        with torch.inference_mode():
            return network(torch.from_numpy(array).to(place)).float().cpu().numpy()

    return run, {"torch": version("torch")}


def onnx(path, device):
    """The same for ONNX."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = device.threads
    session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    name = session.get_inputs()[0].name
    return (lambda array: session.run(None, {name: array})[0]), {"onnxruntime": version("onnxruntime")}


class Loaded:
    """A network, ready for volumes."""

    def __init__(self, card, run, versions):
        self.card, self.run, self.versions = card, run, versions

    def analyse(self, volume):
        """A segment and a volume for each label."""
        settings = self.card.settings
        turned = upright(volume)
        low, high = settings["window_hu"]
        grey = ((turned.hu.astype(np.float32) - low) / (high - low)).clip(0, 1)
        spacing = settings.get("spacing_mm")
        if spacing:
            grey = zoom(grey, np.divide(volume.spacing_mm, spacing), order=1, grid_mode=True, mode="nearest")
        scores = self.run(grey[None, None])[0]
        if spacing:
            factors = np.divide(turned.hu.shape, scores.shape[1:])
            scores = np.stack([zoom(score, factors, order=1, grid_mode=True, mode="nearest") for score in scores])
        labels = scores.argmax(0) if len(scores) > 1 else scores[0] > settings.get("score", 0.5)
        return output_of(as_stored(labels, turned), self.card, volume, self.versions)


class Plug:
    """The kind of models whose card says `kind = "segmentation"`."""

    def load(self, folder, card, device):
        """Load the one file that the card lists under [weights.network]."""
        path = str(folder / card.weights["network"].file)
        return Loaded(card, *(onnx if path.endswith(".onnx") else torchscript)(path, device))


PLUG = Plug()

"""A MONAI bundle: its own network, preprocessing, inferer and postprocessing, as configs/inference.json describes them.

The bundle lies in the folder of the card, which adds only what a bundle cannot say: the codes of its labels.
"""

from importlib.metadata import version

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from segmentation_plugin.labels import output_of

# The node reads and writes the images.
FILES = ("LoadImage", "LoadImaged", "SaveImage", "SaveImaged")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Loaded:
    """A bundle, ready for volumes."""

    def __init__(self, card, parser, weights, device):
        parts = "network_def", "inferer", "preprocessing", "postprocessing"
        self.network, self.inferer, self.before, self.after = map(parser.get_parsed_content, parts)
        self.network.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
        self.network.to(device).eval()
        self.card, self.device = card, device

    def analyse(self, volume):
        """What the bundle's own steps make of the volume, on its grid."""
        affine, meta = torch.from_numpy(LPS_TO_RAS @ volume.affine), {"original_channel_dim": "no_channel"}
        data = self.before({"image": MetaTensor(torch.from_numpy(volume.hu.T.astype(np.float32)), affine, meta)})
        with torch.inference_mode():
            data["pred"] = self.inferer(data["image"][None].to(self.device), self.network)[0].cpu()
        labels = self.after(data)["pred"][0]
        return output_of(labels.numpy().T, self.card, volume, {"monai": version("monai"), "torch": version("torch")})


class Plug:
    """The kind of models whose card says `kind = "monai-bundle"`."""

    def load(self, folder, card, device):
        """Read the bundle's configuration, build its network, and load the weights that the card lists."""
        place = device.device if device.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        parser = ConfigParser()
        parser.read_config(folder / "configs" / "inference.json")
        parser.read_meta(folder / "configs" / "metadata.json")
        parser["bundle_root"], parser["device"] = str(folder), f"$torch.device('{place}')"
        for name in ("preprocessing", "postprocessing"):
            steps = parser[name]["transforms"]
            parser[name]["transforms"] = [step for step in steps if step["_target_"] not in FILES]
        return Loaded(card, parser, folder / card.weights["network"].file, place)


PLUG = Plug()

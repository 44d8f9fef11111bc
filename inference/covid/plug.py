"""The plug of U-Net and DeCoVNet; torch loads when a model does."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from inference.ahead import Ahead
from inference.covid.card import ZhengCard
from inference.errors import ModelError
from inference.models.cards import Card
from inference.plug import DeviceChoice, Explanation, Output
from inference.volume.ct_volume import CTVolume

if TYPE_CHECKING:
    from inference.covid.ahead import MasksAhead
    from inference.covid.pipeline import Pipeline


class LoadedZheng:
    """The two networks on a device."""

    def __init__(self, pipeline: "Pipeline", *, trace: bool = False) -> None:
        self.pipeline = pipeline
        self._trace = trace

    def analyse(self, volume: CTVolume) -> Output:
        """The verdict in the form of the plug. Raises UnsuitableSeries."""
        from inference.covid.output import output_of

        return output_of(self.pipeline.run(volume, trace=self._trace), volume, self.pipeline.identity)

    def ahead(self, max_bytes: int) -> "MasksAhead | None":
        """Begin with a series that still arrives, see `inference.ahead`."""
        return self.pipeline.ahead(max_bytes)

    def analyse_with(self, volume: CTVolume, ahead: Ahead) -> Output:
        """As `analyse`, with the masks that were computed ahead. Raises UnsuitableSeries."""
        from inference.covid.ahead import MasksAhead
        from inference.covid.output import output_of

        kept = ahead.kept if isinstance(ahead, MasksAhead) else None
        return output_of(self.pipeline.run(volume, trace=self._trace, kept=kept), volume, self.pipeline.identity)

    def explain(self, volume: CTVolume, progress: Callable[[str], None]) -> Explanation:
        """The output without each part of the lungs. Raises UnsuitableSeries."""
        from inference.covid.occlusion import explain

        return explain(self.pipeline, volume, progress)


class Zheng:
    """The kind of models that Zheng et al. 2020 describe."""

    card_type = ZhengCard
    reads_cards_without_kind = True
    calibrates = True  # its outputs are what `Card.calibrated` makes of them

    def load(self, folder: Path, card: Card, device: DeviceChoice) -> LoadedZheng:
        """Load both networks. Raises ModelError if they are missing, altered or do not fit."""
        from inference.covid.loading import load_pipeline

        pipeline = load_pipeline(folder, device.device, precision=device.precision, threads=device.threads)
        return LoadedZheng(pipeline, trace=device.trace)

    def import_files(self, files: Mapping[str, Path], models_dir: Path, *, allow_unverified: bool) -> Card:
        """Take in the authors' two checkpoints. Raises ModelError if one is missing or not theirs."""
        from inference.covid.weights import import_authors

        missing = {"unet", "decovnet"} - set(files)
        if missing:
            raise ModelError(f"a file for {' and '.join(sorted(missing))} is missing")
        return import_authors(files["unet"], files["decovnet"], models_dir, allow_unverified=allow_unverified)


PLUG = Zheng()

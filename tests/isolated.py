"""A volume and limits for models that run in processes of their own."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from inference.isolation.host import IsolatedLoaded, IsolatedModel
from inference.models.cards import Limits, read_card
from inference.plug import Code, DeviceChoice
from inference.volume.ct_volume import CTVolume, SeriesHeader, SourceSlice

VOLUME = Code("118565006", "SCT", "Volume")
LIMITS = Limits(memory_mb=2048, time_s=60, scratch_mb=64)
CPU = DeviceChoice("cpu", threads=1)


def a_volume(slices: int = 6) -> CTVolume:
    hu = np.random.default_rng(1).integers(-1000, 400, (slices, 40, 44), np.int16)
    header = SeriesHeader(
        modality="CT",
        image_type=("ORIGINAL", "PRIMARY"),
        series_description="Doe Jane",
        study_description="Doe Jane",
        protocol_name="Doe Jane",
        image_comments="Doe Jane",
        derivation="Doe Jane",
        equipment=frozenset({("Maker", "Model")}),
        age_years=60.0,
    )
    of = [SourceSlice(Path(f"/store/Doe/{z}"), f"1.2.3.{z}", "1.2.4", 0, (0.0, 0.0, 2.0 * z)) for z in range(slices)]
    return CTVolume(hu, (2.0, 1.0, 1.0), np.eye(4), tuple(of), "1.2.3", "1.2.5", header, dropped=("1.2.3.99",))


def loaded(name: str, folder: Path, limits: Limits = LIMITS, required: bool = True) -> IsolatedLoaded:
    """One of `hostile_models`, for any volume."""
    card = replace(read_card(folder), limits=limits, codes=(VOLUME,))
    return replace(IsolatedModel(f"tests.hostile_models:{name}", required).load(folder, card, CPU), policy=None)

"""The published checkpoints on real series: the numbers that the authors' preprocessing gives.

One run of the fastest exact engine per series. Probabilities, crops and volumes were computed with the authors' own
code; how far this implementation is from them is the tolerance beside each.
"""

from pathlib import Path

import pytest

from inference.covid.loading import load_pipeline
from inference.covid.weights import import_authors
from inference.models.registry import find_model
from inference.volume.folder import find_series
from inference.volume.load import load

# Lowest and highest probability over the card's harmless changes; None where the output is too clear to try any. They
# are this program's own: only the probability is the authors'.
SPREADS = {
    "MD04_every2nd": None,
    "MD05_every2nd": (0.155, 0.256),
    "lungdx_A0002_B40f_30slices": (0.147, 0.754),
}

# Series: slices after resampling, raw mask in mL, crop, P(COVID-19), and its tolerance.
EXPECTED = {
    "MD04_every2nd": (268, 4251.4, (113, 303, 378), 1.0, 1e-4),
    "MD05_every2nd": (308, 3960.7, (130, 258, 435), 0.256119, 1e-4),
    "lungdx_A0002_B40f_30slices": (240, 3058.3, (101, 275, 367), 0.330867, 1e-4),
}


@pytest.fixture(scope="module")
def models(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    weights = shared / "weights"
    import_authors(weights / "unet.pth", weights / "ncov-Epoch_00140-auc95p9.pth", folder)
    return folder


@pytest.mark.shared
@pytest.mark.parametrize("name", EXPECTED)
def test_a_real_series_gives_the_published_numbers(name: str, shared: Path, models: Path) -> None:
    count, raw_ml, crop, probability, tolerance = EXPECTED[name]
    ((files),) = find_series(shared / "data" / "dicom" / name).values()
    pipeline = load_pipeline(find_model(models), "cpu")
    finding = pipeline.run(load(files), trace=True)
    assert finding.trace["slices_resampled"] == count
    assert finding.trace["raw_mask_ml"] == pytest.approx(raw_ml, rel=0.001)
    assert finding.trace["crop"] == list(crop)
    assert finding.probability == pytest.approx(probability, abs=tolerance)
    assert pipeline.identity.verified and finding.precision == "float32"
    spread, expected = finding.spread, SPREADS[name]
    assert (spread is None) == (expected is None)
    if spread is not None:
        assert (spread.low, spread.high) == pytest.approx(expected, abs=0.01)

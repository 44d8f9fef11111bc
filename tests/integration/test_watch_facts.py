"""What a result tells of its scan: measured on phantoms whose values are known, and kept without the patient."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from config.settings import Settings, WatchSettings
from inference.phantom.chest import Phantom, Scanner, make_phantom
from inference.phantom.series import write_series
from inference.plug import Output
from inference.scan_facts import Measured, measure
from inference.volume.ct_volume import CTVolume, SeriesHeader, SourceSlice
from tests.integration.test_changes import MODELS, analyse
from tests.storage_factory import Store

HEADERS = {
    "Manufacturer": "ACME", "ManufacturerModelName": "One", "SoftwareVersions": "VA40A", "Exposure": "87",
    "PatientAge": "097Y", "PatientName": "Doe^Jane", "PatientID": "P4711",
}  # fmt: skip


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(12, slices=40, size=256, lesions="none", scanner=Scanner(noise_hu=20.0, kernel="B30f"))


def volume_of(phantom: Phantom, hu: npt.NDArray[np.int16]) -> CTVolume:
    affine = np.diag([*phantom.spacing_mm[::-1], 1.0])
    slices = tuple(SourceSlice(Path("x"), str(z), "1.2", 0, (0, 0, 0)) for z in range(len(hu)))
    return CTVolume(hu, phantom.spacing_mm, affine, slices, "1.2.3", "1.2.4", SeriesHeader())


def test_a_scanner_that_reads_20_hu_too_high_shows_in_air_trachea_and_lung_alone(phantom: Phantom) -> None:
    true, shifted = (
        measure(volume_of(phantom, phantom.hu), Output()),
        measure(volume_of(phantom, phantom.hu + np.int16(20)), Output()),
    )
    assert true.hu_air == pytest.approx(-1000, abs=2) and true.hu_trachea == pytest.approx(-985, abs=8)
    lung = phantom.hu[phantom.lung_mask].mean()
    assert true.hu_lung == pytest.approx(lung, abs=40)
    for name in ("hu_air", "hu_trachea", "hu_lung"):
        assert getattr(shifted, name) - getattr(true, name) == pytest.approx(20, abs=3), name
    for name in ("noise_hu", "lung_volume_ml"):
        assert getattr(shifted, name) == pytest.approx(getattr(true, name), rel=0.05), name
    assert true.noise_hu == pytest.approx(20, rel=0.4)


def test_padding_is_not_taken_for_air_and_a_picture_of_nothing_has_no_facts(phantom: Phantom) -> None:
    padded = phantom.hu.copy()
    y, x = np.ogrid[:256, :256]
    padded[:, (y - 127.5) ** 2 + (x - 127.5) ** 2 > 127**2] = -2000
    assert measure(volume_of(phantom, padded), Output()).hu_air == pytest.approx(-1000, abs=2)
    assert measure(volume_of(phantom, np.zeros((20, 64, 64), np.int16)), Output()) == Measured()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path, f"sqlite:///{tmp_path}/node.db") as opened:
        yield opened


def settings_of(store: Store, enabled: bool) -> Settings:
    watch = WatchSettings(enabled=enabled)
    return Settings(data_dir=store.folder, models=MODELS, sources=[{"ae_title": "CT"}], watch=watch)


def test_each_live_result_has_its_facts_and_no_patient_in_them(store: Store, phantom: Phantom, tmp_path: Path) -> None:
    paths = write_series(phantom, tmp_path / "scan")
    result_id = analyse(store, paths, 0.0, settings_of(store, True), **HEADERS)
    (facts,) = store.rows("SELECT * FROM watch_facts")
    (result,) = store.rows("SELECT * FROM results")
    assert (facts["result_id"], facts["at"], result["outcome"]) == (result_id, result["created_at"], "ANALYSED")
    words = ("manufacturer", "scanner_model", "kernel", "software", "age_years", "kv", "mas")
    assert [facts[name] for name in words] == ["ACME", "One", "B30f", "VA40A", 90, 120.0, 87.0]
    assert facts["hu_air"] == pytest.approx(-1000, abs=2)
    (volume,) = store.rows(
        "SELECT value FROM result_measurements WHERE concept_code = '118565006' AND laterality = 'Bilateral'"
        " AND topography IS NULL AND segment IS NULL"
    )
    assert facts["lung_volume_ml"] == volume["value"]
    assert "Doe" not in str(facts) and "P4711" not in str(facts)
    assert '"facts"' in str(result["timings"])


@pytest.fixture
def gappy(phantom: Phantom, tmp_path: Path) -> list[Path]:
    """A series of which slices are missing: it makes no volume."""
    paths = write_series(replace(phantom, hu=phantom.hu[:, :8, :8]), tmp_path / "scan")
    return [*paths[:10], *paths[13:]]


def test_a_refused_series_tells_what_its_headers_say(store: Store, gappy: list[Path]) -> None:
    analyse(store, gappy, 0.0, settings_of(store, True), **HEADERS)
    (facts,) = store.rows("SELECT * FROM watch_facts")
    (result,) = store.rows("SELECT * FROM results")
    assert result["reason_code"] == "MISSING_SLICES"
    assert (facts["scanner_model"], facts["kernel"], facts["hu_air"], facts["probability"]) == (
        "One",
        "B30f",
        None,
        None,
    )


def test_nothing_is_kept_unless_a_site_asks_for_it(store: Store, gappy: list[Path]) -> None:
    assert not Settings().watch.enabled
    analyse(store, gappy, 0.0, settings_of(store, False))
    assert store.rows("SELECT outcome FROM results") and not store.rows("SELECT * FROM watch_facts")

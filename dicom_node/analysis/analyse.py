"""From the files of one series to an outcome: the part that the worker and `dicom-node analyse` share."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from config.own_equipment import OwnEquipment
from config.reasons import ReasonCode, Refusal
from config.settings import ReportSettings
from config.uids import uid_problem
from dicom_node.analysis.open_model import OpenModel
from inference.ahead import Ahead, WorksAhead
from inference.errors import CorruptInstance, Evidence, UnsuitableSeries
from inference.output_check import check_output
from inference.plug import Finding, Output
from inference.volume.ct_volume import CTVolume
from inference.volume.folder import Folder
from inference.volume.load import DecodedFile, load
from storage.results import ResultOutcome


@dataclass(frozen=True)
class Analysis:
    """What became of a series: a finding, or the reason why there is none.

    volume: None if the files gave no volume.
    evidence: where the volume shows the reason; None if that is not in its pixels.
    """

    finding: Finding | None
    refusal: Refusal | None
    volume: CTVolume | None
    timings_s: dict[str, float] = field(default_factory=dict)
    evidence: Evidence | None = None

    @property
    def output(self) -> Output | None:
        """What the model said; None if it was not analysed."""
        return None if self.finding is None else self.finding.output

    @property
    def outcome(self) -> ResultOutcome:
        """ANALYSED with a finding, else NOT_ANALYSED."""
        return ResultOutcome.ANALYSED if self.finding is not None else ResultOutcome.NOT_ANALYSED


@dataclass(frozen=True)
class Loaded:
    """One series as a volume, or the reason why there is none. seconds: how long that took."""

    volume: CTVolume | None
    refusal: Refusal | None
    seconds: float
    _digest: list[str] = field(default_factory=list)

    def at(self, places: Mapping[Path, Path]) -> "Loaded":
        """The same with its files where they lie now: a store may give each job copies of its own.

        places: by where they lay.
        """
        if self.volume is None or all(before == now for before, now in places.items()):
            return self
        slices = tuple(replace(one, path=places[one.path]) for one in self.volume.slices)
        return replace(self, volume=replace(self.volume, slices=slices))

    def digest(self) -> str:
        """Of the volume, computed once however many models analyse it; only if there is one."""
        if self.volume is not None and not self._digest:
            self._digest.append(self.volume.digest())
        return self._digest[0]


def load_series(paths: Sequence[Path], decoded: Mapping[Path, DecodedFile] | None = None) -> Loaded:
    """Load one series. decoded: files that were decoded before, see `volume.load`.

    A series that gives no volume is an outcome, not an error: every other exception is a fault of the node.
    """
    started = time.perf_counter()
    volume, refusal = None, None
    try:
        volume = load(paths, decoded=decoded or {})
    except UnsuitableSeries as error:
        refusal = error.refusal
    except CorruptInstance as error:
        refusal = Refusal(ReasonCode.CORRUPT_INSTANCE, str(error))
    return Loaded(volume, refusal, time.perf_counter() - started)


def analyse(paths: Sequence[Path], model: OpenModel, *, own: ReportSettings | None = None) -> Analysis:
    """Load one series and run the model on it, see `analyse_loaded`."""
    return analyse_loaded(load_series(paths), model, own=own)


def analyse_loaded(
    loaded: Loaded, model: OpenModel, *, own: ReportSettings | None = None, ahead: Ahead | None = None
) -> Analysis:
    """Run the model on a series that was loaded.

    ahead: what this model has computed of its slices before. It makes no difference but in time.
    own: names the node by its manufacturer and device name; what it made or had a part in is refused.
    A series that cannot be analysed is an outcome, not an error: every other exception is a fault of the node.
    """
    started = time.perf_counter() - loaded.seconds
    volume = loaded.volume
    if volume is None:
        return Analysis(None, loaded.refusal, None, {"total": loaded.seconds})
    try:
        _refuse_unnamed(volume)
        if own is not None:
            _refuse_own_objects(volume, own)
        output = _output(model, volume, ahead)
        check_output(output, volume)
    except UnsuitableSeries as error:
        return replace(_refused(error.refusal, volume, started), evidence=error.evidence)
    except CorruptInstance as error:
        return _refused(Refusal(ReasonCode.CORRUPT_INSTANCE, str(error)), volume, started)
    identity = replace(model.identity, algorithms=output.algorithms or model.identity.algorithms)
    finding = Finding(identity, output, loaded.digest())
    timings = {"load": loaded.seconds, **output.run.timings_s, "total": time.perf_counter() - started}
    return Analysis(finding, None, volume, timings)


def _output(model: OpenModel, volume: CTVolume, ahead: Ahead | None) -> Output:
    if ahead is not None and isinstance(model.loaded, WorksAhead):
        return model.loaded.analyse_with(volume, ahead)
    return model.loaded.analyse(volume)


def analyse_folder(folder: Folder, series_uid: str, model: OpenModel, *, own: ReportSettings | None = None) -> Analysis:
    """As `analyse`, for one series of a folder; refused if files that may belong to it cannot be read."""
    started = time.perf_counter()
    try:
        paths = folder.whole(series_uid)
    except CorruptInstance as error:
        return _refused(Refusal(ReasonCode.CORRUPT_INSTANCE, str(error)), None, started)
    return analyse(paths, model, own=own)


def _refuse_unnamed(volume: CTVolume) -> None:
    """A report names the study, the series and its instances: without valid UIDs there can be none."""
    of_instances = {slice_.sop_instance_uid for slice_ in volume.slices}
    for level, uids in (
        ("Study", {volume.study_instance_uid}),
        ("Series", {volume.series_instance_uid}),
        ("SOP", of_instances),
    ):
        problem = next(filter(None, map(uid_problem, sorted(uids))), None)
        if problem:
            raise CorruptInstance(f"the {level} Instance UID {problem}")


def _refuse_own_objects(volume: CTVolume, own: ReportSettings) -> None:
    header = volume.header
    if OwnEquipment.of(own).had_a_part((header.manufacturer, header.manufacturer_model), header.equipment):
        raise UnsuitableSeries(
            ReasonCode.OWN_OBJECT, "This node had a part in these images; it does not analyse them again."
        )


def _refused(refusal: Refusal, volume: CTVolume | None, started: float) -> Analysis:
    return Analysis(None, refusal, volume, {"total": time.perf_counter() - started})

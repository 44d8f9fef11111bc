"""The objects of a result: a later revision of the same instances has UIDs of its own, and names its predecessor."""

import io
from pathlib import Path

from pydicom import Dataset, dcmread

from config.reasons import ReasonCode, Refusal
from config.settings import ReportSettings, Settings
from dicom_node.analysis.analyse import Analysis
from dicom_node.analysis.result_objects import report_objects
from tests.factories import model
from tests.unit.ct_series import noise, write_series

REFUSED = Analysis(None, Refusal(ReasonCode.MISSING_SLICES, "Slices are missing."), None)


def reports(paths: list[Path], revision: int, predecessor: bytes | None = None) -> list[bytes]:
    settings = Settings(report=ReportSettings(report_not_analysed=True))
    built = report_objects(
        REFUSED, paths, model(), settings, instances_digest="d", revision=revision, predecessor=predecessor
    )
    return [one.part10 for one in built.objects]


def uids(found: list[bytes]) -> list[Dataset]:
    return [dcmread(io.BytesIO(part10)) for part10 in found]


def test_the_same_instances_analysed_again_give_new_uids_and_the_same_revision_the_same(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise(4))
    first, again = reports(paths, 1), reports(paths, 1)
    later = reports(paths, 2, predecessor=first[0])
    names = [[(one.SOPInstanceUID, one.SeriesInstanceUID) for one in uids(found)] for found in (first, again, later)]
    assert names[0] == names[1]
    assert not {uid for pair in names[0] for uid in pair} & {uid for pair in names[2] for uid in pair}
    [named] = uids(later)[0].PredecessorDocumentsSequence
    assert named.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == names[0][0][0]

"""What is kept of a result's scan for watching its model: from its headers, and from its pixels if it was analysed."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from dicom_node.analysis.analyse import Analysis
from inference.errors import InferenceError
from inference.scan_facts import Measured, measure
from inference.volume.ct_volume import SeriesHeader
from inference.volume.instances import read_frames
from storage.watch_facts import Facts

log = structlog.get_logger()
MOST_FILES = 5


def facts_of(analysis: Analysis, paths: Sequence[Path]) -> Facts | None:
    """The facts of a result; None if no header of its images can be read. paths: of the images.

    What it takes is noted among the result's timings. Nothing in a scan makes its result fail here.
    """
    started = time.perf_counter()
    header, spacing_mm, pixel_mm = _of_headers(analysis, paths)
    if header is None:
        return None
    measured = _measured(analysis)
    analysis.timings_s["facts"] = time.perf_counter() - started
    finding = analysis.output.findings[0] if analysis.output and analysis.output.findings else None
    return Facts(
        manufacturer=header.manufacturer,
        scanner_model=header.manufacturer_model,
        kernel=header.kernel,
        software=header.software,
        age_years=header.age_years,
        thickness_mm=header.slice_thickness_mm or None,
        spacing_mm=spacing_mm,
        pixel_mm=pixel_mm,
        kv=header.kv,
        mas=header.mas,
        **vars(measured),
        probability=finding.certainty if finding else None,
        positive=finding.positive if finding else None,
    )


def _of_headers(analysis: Analysis, paths: Sequence[Path]) -> tuple[SeriesHeader | None, float | None, float | None]:
    """Header, distance of slices and width of a pixel; of the first image that can be read, if there is no volume."""
    if analysis.volume is not None:
        spacing_mm, _, pixel_mm = analysis.volume.spacing_mm
        return analysis.volume.header, spacing_mm, pixel_mm
    for path in paths[:MOST_FILES]:
        with contextlib.suppress(InferenceError):
            frame = read_frames(path)[0]
            return frame.header, None, frame.spacing_mm[1] if frame.spacing_mm else None
    return None, None, None


def _measured(analysis: Analysis) -> Measured:
    if analysis.volume is None or analysis.output is None:
        return Measured()
    try:
        return measure(analysis.volume, analysis.output)
    except Exception as error:  # noqa: BLE001 - the result stands, whatever watching makes of its scan
        log.error("a scan was not measured", error=type(error).__name__)
        return Measured()

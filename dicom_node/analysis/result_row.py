"""An analysis as the row of its result in the index."""

from collections.abc import Iterator

from dicom_node.analysis.analyse import Analysis
from dicom_node.analysis.content import content_of
from inference.finding import ModelIdentity, QualityCheck
from inference.plug import Output
from storage.coded import Content
from storage.results import EVIDENCE, NewResult


def new_result(analysis: Analysis, model: ModelIdentity) -> NewResult:
    """The row of an analysis."""
    finding, refusal, output = analysis.finding, analysis.refusal, analysis.output
    checks = (*output.checks, *spreads_of(output)) if output else ()
    return NewResult(
        outcome=analysis.outcome,
        reason_code=str(refusal.code) if refusal else None,
        reason_text=refusal.sentence if refusal else None,
        content=content_of(output) if output else Content(),
        weights={role: sha256 for role, sha256 in model.weights.items() if sha256},
        threshold=model.threshold,
        pixel_digest=finding.pixel_digest if finding else None,
        model_name=model.name,
        model_version=model.version,
        model_digest=model.digest,
        device=output.run.device if output else "",
        precision=output.run.precision if output else "",
        versions=output.run.versions if output else {},
        timings=analysis.timings_s,
        checks=[{"code": check.code, "sentence": check.sentence} for check in checks] + shown_by(analysis),
    )


def shown_by(analysis: Analysis) -> list[dict[str, str]]:
    """The slice that shows best why a series was not analysed, if the pixels showed it."""
    if analysis.volume is None or analysis.evidence is None or analysis.evidence.z is None:
        return []
    uid = analysis.volume.slices[analysis.evidence.z].sop_instance_uid
    return [{"code": EVIDENCE, "sentence": "The slice that shows the reason best.", "sop_instance_uid": uid}]


def spreads_of(output: Output) -> Iterator[QualityCheck]:
    """How far harmless changes moved its findings, as far as that was tried."""
    for finding in output.findings:
        if finding.spread is not None:
            low, high = finding.spread.low, finding.spread.high
            sides = "to both sides of" if finding.unstable else "on one side of"
            sentence = f"Harmless changes move the output from {low:.4f} to {high:.4f}, {sides} the threshold."
            yield QualityCheck("SPREAD", sentence)

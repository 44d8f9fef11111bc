"""An analysis as the row of its result in the index."""

from dicom_node.analysis.analyse import Analysis
from dicom_node.analysis.content import content_of
from inference.finding import Finding, ModelIdentity, QualityCheck
from storage.coded import Content
from storage.results import NewResult


def new_result(analysis: Analysis, model: ModelIdentity) -> NewResult:
    """The row of an analysis."""
    finding, refusal, output = analysis.finding, analysis.refusal, analysis.output
    weights = {"unet": model.unet_sha256, "decovnet": model.decovnet_sha256}
    return NewResult(
        outcome=analysis.outcome,
        reason_code=str(refusal.code) if refusal else None,
        reason_text=refusal.sentence if refusal else None,
        content=content_of(output) if output else Content(),
        weights={role: sha256 for role, sha256 in weights.items() if sha256},
        threshold=model.threshold,
        pixel_digest=finding.pixel_digest if finding else None,
        model_name=model.name,
        model_version=model.version,
        model_digest=model.digest,
        device=output.run.device if output else "",
        precision=output.run.precision if output else "",
        versions=output.run.versions if output else {},
        timings=analysis.timings_s,
        checks=[
            {"code": c.code, "sentence": c.sentence} for c in (*(output.checks if output else ()), *spread_of(finding))
        ],
    )


def spread_of(finding: Finding | None) -> tuple[QualityCheck, ...]:
    """How far harmless changes moved a finding, if that was tried."""
    if finding is None or finding.spread is None:
        return ()
    spread = finding.spread
    sides = "to both sides of" if finding.unstable else "on one side of"
    sentence = f"Harmless changes move the output from {spread.low:.4f} to {spread.high:.4f}, {sides} the threshold."
    return (QualityCheck("SPREAD", sentence),)

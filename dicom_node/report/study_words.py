"""Several results of one study in words: one statement, in which a positive and a negative never stand alone."""

from dicom_node.report.context import EarlierResult, StudyStatement
from dicom_node.report.frame import Origin
from inference.numerals import percent
from inference.plug import Finding, FindingByCode


def study_statement(finding: Finding, origin: Origin) -> str:
    """What the results of the study say together; empty if this is the only one."""
    statement = origin.context.study
    said = next((one for one in finding.output.findings if one.certainty is not None), None)
    if statement is None or said is None:
        return ""
    own_uid = str(origin.first.SeriesInstanceUID)
    results = [*map(_named, statement.earlier), f"this series: {_output(said)}"]
    return (
        f"This study has {len(results)} results, which are one statement and must be read together: "
        f"{'; '.join(results)}. {_together(said, statement)} The statement of the study rests on "
        f"{_named_series(statement, own_uid)}, because {statement.why}."
    )


def _together(finding: FindingByCode, statement: StudyStatement) -> str:
    signs = {finding.positive, *(one.positive for one in statement.earlier)}
    if len(signs) == 2:
        return "THEY DIFFER: one is positive and another negative, so neither is certain."
    return f"All are {'positive' if finding.positive else 'negative'}."


def _named_series(statement: StudyStatement, own_uid: str) -> str:
    if statement.rests_on == own_uid:
        return "this series"
    one = next(one for one in statement.earlier if one.series_instance_uid == statement.rests_on)
    return f"{_series(one)} ({'positive' if one.positive else 'negative'})"


def _named(one: EarlierResult) -> str:
    model = f", by model {one.model}" if one.model else ""
    return f"{_series(one)}, reported before: {_sign(one.probability, one.threshold)}{model}"


def _series(one: EarlierResult) -> str:
    number = one.series_number or "without number"
    return f'series {number} "{one.description}"' if one.description else f"series {number}"


def _output(finding: FindingByCode) -> str:
    return _sign(finding.certainty or 0.0, finding.threshold or 0.0)


def _sign(probability: float, threshold: float) -> str:
    return f"{percent(probability, threshold)} %, {'positive' if probability >= threshold else 'negative'}"

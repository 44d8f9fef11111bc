"""One HTML page that contains every figure. It has no scripts and loads nothing, so it can be sent by mail."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from inference.evaluation.assessment import Assessment
from inference.evaluation.comparison import Comparison
from inference.evaluation.intervals import Interval
from inference.evaluation.metrics import ThresholdRow
from inference.evaluation.subgroups import FEW, SubgroupRow, figure_name

POINT_WORDS = {
    "high_sensitivity": "high sensitivity (nearest to 0.95)",
    "high_specificity": "high specificity (nearest to 0.95)",
    "balanced": "best balanced (the lower of both is highest)",
    "youden": "greatest sum of both (Youden)",
}
CAPTIONS = {
    "roc": "Sensitivity against 1 - specificity over all thresholds.",
    "precision-recall": "Precision depends on the share of positive cases in the set.",
    "calibration": "A well calibrated model lies on the diagonal: of cases with 0.8, 80% are positive.",
    "predictive-values": "The same model at the same threshold, among people with more or less of the disease.",
    "probabilities": "How the probabilities of the two classes lie.",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.lead { color: #555; margin-top: .3rem; }
.key { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.key div { border: 1px solid #ccc; border-radius: 6px; padding: .6rem 1rem; min-width: 9rem; }
.key b { display: block; font-size: 1.5rem; } .key span { color: #555; font-size: .85rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
.wide { overflow-x: auto; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
td small { color: #555; display: block; white-space: nowrap; }
.note { background: #fff6dc; border-left: 4px solid #e69f00; padding: .4rem .8rem; margin: .5rem 0; }
figure { margin: 1rem 0; display: inline-block; vertical-align: top; max-width: 30rem; }
figure img { max-width: 100%; } figcaption { color: #555; font-size: .85rem; }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""
RESEARCH = "For research use; not for diagnosis."
PREDICTIVE = (
    "PPV and NPV hold for the share of positive cases in this set only. Elsewhere, the table of predictive values by "
    "prevalence holds, as far as sensitivity and specificity stay the same there."
)
Cell = str | float | int | None


def page(assessment: Assessment, svgs: Mapping[str, bytes]) -> str:
    """The whole page as HTML. svgs: the plots by name, as `plots.draw` returns them."""
    parts = [
        f"<h1>Evaluation of {escape(assessment.source)}</h1>",
        f'<p class="lead">{_cases(assessment)} {RESEARCH}</p>',
        *(f'<p class="note">{escape(note[:1].upper() + note[1:])}.</p>' for note in assessment.notes),
        _key_figures(assessment),
        _section("Curves", _figures(svgs, "roc", "precision-recall")),
        _section("Operating points", _operating_points(assessment)),
        _section("Thresholds", _thresholds(assessment)),
        _section("Predictive values by prevalence", _predictive_values(assessment, svgs)),
        _section("Calibration", _calibration(assessment) + _figures(svgs, "calibration", "probabilities")),
        _section("Subgroups", _subgroups(assessment, svgs)),
        _section("A second model on the same cases", _comparison(assessment.comparison)),
        _section("Left out", _left_out(assessment.left_out)),
        _section("How this was made", _making(assessment)),
    ]
    return _document(f"Evaluation of {assessment.source}", "\n".join(part for part in parts if part))


def _document(title: str, body: str) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def _cases(assessment: Assessment) -> str:
    people = f" of {assessment.patients} patients" if assessment.patients else ""
    share = f"{assessment.prevalence:.1%}"
    return (
        f"{assessment.cases} cases{people}: {assessment.positives} positive ({share}), {assessment.negatives} negative."
    )


def _key_figures(assessment: Assessment) -> str:
    at = assessment.threshold
    entries = (
        ("ROC AUC", assessment.roc_auc, assessment.roc_auc_interval),
        ("PR AUC", assessment.pr_auc, assessment.pr_auc_interval),
        ("Brier score", assessment.brier, assessment.brier_interval),
        (f"sensitivity at {at.threshold:g}", at.sensitivity, at.intervals["sensitivity"]),
        (f"specificity at {at.threshold:g}", at.specificity, at.intervals["specificity"]),
        (f"accuracy at {at.threshold:g}", at.accuracy, at.intervals["accuracy"]),
    )
    boxes = (
        f"<div>{escape(name)}<b>{number(value)}</b><span>{span and f'95%: {span}'}</span></div>"
        for name, value, span in ((name, value, _interval(interval)) for name, value, interval in entries)
    )
    return f'<div class="key">{"".join(boxes)}</div>'


def _operating_points(assessment: Assessment) -> str:
    rows = ((POINT_WORDS.get(name, name.replace("_", " ")), row) for name, row in assessment.operating_points.items())
    return _threshold_table("rule", rows)


def _thresholds(assessment: Assessment) -> str:
    rows = ((f"{row.threshold:g}", row) for row in assessment.thresholds)
    return _threshold_table(None, rows) + f"<p>{PREDICTIVE} Below each figure: its 95% interval (Wilson).</p>"


def _threshold_table(first: str | None, rows: Iterable[tuple[str, ThresholdRow]]) -> str:
    names = ("accuracy", "sensitivity", "specificity", "ppv", "npv")
    head = [*([first] if first else []), "threshold", "accuracy", "sensitivity", "specificity", "PPV", "NPV"]
    body = []
    for title, row in rows:
        cells = [escape(title), *([f"{row.threshold:.4g}"] if first else [])]
        for name in names:
            cells.append(f"{number(getattr(row, name))}<small>{_interval(row.intervals[name])}</small>")
        counts = (row.true_positive, row.false_positive, row.true_negative, row.false_negative)
        body.append([*cells, *map(str, counts)])
    return _table([*head, "TP", "FP", "TN", "FN"], body) if body else ""


def _predictive_values(assessment: Assessment, svgs: Mapping[str, bytes]) -> str:
    values = assessment.predictive_values
    if values is None:
        return ""
    words = {assessment.prevalence: " (these cases)", assessment.settings["prevalence"]: " (the site)"}
    rows = [
        [f"{row.prevalence:.1%}{words.get(row.prevalence, '')}", number(row.ppv), number(row.npv)]
        for row in values.rows
    ]
    intro = (
        f"<p>At threshold {values.threshold:g}, with sensitivity {values.sensitivity:.3f} and "
        f"specificity {values.specificity:.3f}.</p>"
    )
    return intro + _table(["prevalence", "PPV", "NPV"], rows) + _figures(svgs, "predictive-values")


def _calibration(assessment: Assessment) -> str:
    rows = [
        [f"{entry.low:.1f} to {entry.high:.1f}", str(entry.cases), number(entry.mean_probability),
         f"{number(entry.positive_share)}<small>{_interval(entry.interval)}</small>"]
        for entry in assessment.calibration
    ]  # fmt: skip
    words = (
        f"<p>Brier score {assessment.brier:.4f}; always saying the share of positives would give "
        f"{assessment.brier_reference:.4f}. Expected calibration error {assessment.calibration_error:.3f}; mean "
        f"probability less share of positives {assessment.calibration_in_the_large:+.3f}.</p>"
    )
    return words + _table(["probability", "cases", "mean probability", "share positive"], rows)


def _subgroups(assessment: Assessment, svgs: Mapping[str, bytes]) -> str:
    parts = []
    for title, rows in assessment.subgroups.items():
        head = [title, "cases", "positive", "ROC AUC", "sensitivity", "specificity"]
        parts.append(_table(head, [_subgroup_cells(row) for row in rows]))
        parts.append(_figures(svgs, figure_name(title)))
    if any(row.few for rows in assessment.subgroups.values() for row in rows):
        parts.append(f"<p>* fewer than {FEW} cases of a class: the figures say little.</p>")
    return "".join(parts)


def _subgroup_cells(row: SubgroupRow) -> list[str]:
    figures = (
        (row.roc_auc, row.roc_auc_interval),
        (row.sensitivity, row.sensitivity_interval),
        (row.specificity, row.specificity_interval),
    )
    cells = [f"{number(value)}<small>{_interval(interval)}</small>" for value, interval in figures]
    return [escape(row.value) + ("*" if row.few else ""), str(row.cases), str(row.positives), *cells]


def _comparison(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    rows = [
        ["shadow model's file", escape(comparison.source)],
        ["cases in both (only in the first, only in the shadow)",
         f"{comparison.cases} ({comparison.only_in_first}, {comparison.only_in_shadow})"],
        ["ROC AUC, first model", number(comparison.roc_auc)],
        ["ROC AUC, shadow model", number(comparison.shadow_roc_auc)],
        ["difference", f"{number(comparison.difference)}<small>{_interval(comparison.difference_interval)}</small>"],
        ["p of no difference (DeLong, paired)", number(comparison.difference_p)],
        [f"both right or both wrong at {comparison.threshold:g}", str(comparison.agree)],
        ["only the first right", str(comparison.only_first_right)],
        ["only the shadow right", str(comparison.only_shadow_right)],
        ["p of no difference (McNemar, exact)", number(comparison.mcnemar_p)],
        ["probability, shadow less first: mean", f"{comparison.mean_difference:+.4f}"],
        ["probability, shadow less first: largest", f"{comparison.largest_difference:+.4f}"],
    ]  # fmt: skip
    return _table(["", ""], rows)


def _left_out(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _making(assessment: Assessment) -> str:
    methods = {interval.method for interval in (
        assessment.roc_auc_interval, assessment.pr_auc_interval, assessment.brier_interval) if interval}  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in assessment.versions.items())
    settings = assessment.settings
    model = assessment.model
    who = (
        ""
        if model is None
        else (
            f"<p>Model {escape(model.name)} {escape(model.version)}, digest {escape(model.digest)}"
            f"{', trained on synthetic phantoms only' if model.demonstration else ''}.</p>"
        )
    )
    made = escape(", ".join(sorted(methods)) or "none could be made")
    return who + (
        "<p>A case is called positive if its probability is at or above the threshold. Intervals are 95%: Wilson's "
        f"for shares; for the areas and the Brier score {made} ({settings['resamples']} resamples, seed "
        f"{settings['seed']}). PR AUC is average precision; with straight lines between the points it would be "
        f"{number(assessment.pr_auc_trapezoid)}. Operating points are chosen on these very cases and so flatter the "
        "model a little.</p>"
        f"<p>Input SHA-256 {assessment.sha256}. {escape(versions)}.</p>"
    )


def _figures(svgs: Mapping[str, bytes], *names: str) -> str:
    parts = []
    for name in names:
        if name in svgs:
            data = base64.b64encode(svgs[name]).decode("ascii")
            caption = CAPTIONS.get(name, "Lines are 95% intervals.")
            image = f'<img alt="{escape(name)}" src="data:image/svg+xml;base64,{data}">'
            parts.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
    return "".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are already HTML; its heads are text."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


def number(value: float | None) -> str:
    """Three decimals, or a dash if the figure is not defined."""
    return "–" if value is None else f"{value:.3f}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.3f}–{interval.high:.3f}"

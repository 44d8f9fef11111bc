"""evaluate node --verdicts: how often readers, or labels from a file, agree with the node's results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from config.settings import Settings
from dicom_node.cli.common import database_of, note_reading, out, plural, print_json, print_rows
from dicom_node.cli.own_data import StoredResult, scan_of, stored_results
from storage.verdicts import LabelledResult, Verdict, labelled_results

if TYPE_CHECKING:
    from inference.evaluation.agreement import Agreement, Judged

AGREES = {Verdict.AGREES: True, Verdict.DISAGREES: False, Verdict.CANNOT_SAY: None}
LONGEST_LIST = 50


def report_agreement(settings: Settings, *, shadow: bool, labels: Path | None, json: bool) -> None:
    """Print how often readers agree with the results of the reporting models, or of the shadow model.

    labels: a CSV of case and label that is judged like one more reader, who did not see the results.
    """
    from inference.evaluation.agreement import agreements, disagreements

    database = database_of(settings)
    with database.read() as tx:
        given = [one for one in labelled_results(tx) if one.shadow is shadow]
        judged = [_of_reader(one) for one in given] + _of_labels(tx, labels, shadow=shadow)
    note_reading(database, "evaluate", verdicts=len(judged))
    found, apart = agreements(judged), disagreements(judged)
    if json:
        print_json(
            [_as_json(one) for one in found] + [{"name": "disagreements", "of": [_listed(one) for one in apart]}]
        )
        return
    _print(found, apart)


def _of_reader(one: LabelledResult) -> Judged:
    from inference.evaluation.agreement import Judged
    from inference.evaluation.subgroups import grouped

    return Judged(
        case=one.series_instance_uid,
        reader=one.given.reader,
        model=one.model,
        agrees=AGREES[one.given.verdict],
        positive=one.positive,
        label=one.label,
        groups=grouped(scan_of(one)),
        result=one.given.result_id,
    )


def _of_labels(tx: Connection, labels: Path | None, *, shadow: bool) -> list[Judged]:
    """What a file says of the scans that the node has results of, of each model one: of the most images."""
    if labels is None:
        return []
    from inference.evaluation.agreement import Judged
    from inference.evaluation.predictions import POSITIVE_WORDS, read_labels
    from inference.evaluation.subgroups import grouped

    truth = read_labels(labels)
    by_case: dict[str, dict[str, StoredResult]] = {}
    for result in sorted(stored_results(tx, shadow=shadow), key=lambda one: one.instance_count):
        for name in result.names & set(truth.rows) if result.positive is not None else ():
            by_case.setdefault(name, {})[result.model] = result
    found = []
    for case, row in truth.rows.items():
        label = row.roles["label"].lower() in POSITIVE_WORDS
        for said in by_case.get(case, {}).values():
            found.append(
                Judged(
                    case=said.series_instance_uid,
                    reader=f"(labels) {truth.file}",
                    model=said.model,
                    agrees=said.positive is label,
                    positive=said.positive,
                    label=label,
                    groups=grouped(said.scan),
                    result=said.result_id,
                )
            )
    return found


def _as_json(one: Agreement) -> dict[str, object]:
    spans = {name: getattr(one, name) for name in ("interval", "kappa_interval")}
    return {**vars(one), **{name: None if span is None else vars(span) for name, span in spans.items()}}


def _listed(one: Judged) -> dict[str, object]:
    """A disagreement for review: no patient, and nothing of what a reader wrote."""
    said = {True: "positive", False: "negative", None: None}
    return {
        "result": one.result,
        "series": one.case,
        "model": one.model,
        "model_says": said[one.positive],
        "reader": one.reader,
        "reader_says": said[one.label],
    }


def _print(found: list[Agreement], apart: list[Judged]) -> None:
    from inference.evaluation.agreement import FEWEST

    first = found[0]
    if not first.verdicts:
        out.print("No reader has given a verdict yet.")
        return
    said = first.agree + first.disagree
    if first.share is not None and first.interval is not None:
        span = f"95% {100 * first.interval.low:.1f} to {100 * first.interval.high:.1f}, Wilson"
        told = f"Readers agree with {100 * first.share:.1f}% of the results that they judge ({span})."
    else:
        told = f"Readers agree with {first.agree} of {said} results that they judge; below {FEWEST}, no rate is given."
    out.print(told, markup=False, soft_wrap=True)
    out.print("They saw the result before they judged, so this is not the model's accuracy.")
    columns = ["", "verdicts", "cases", "agree", "disagree", "can't say", "agreement", "95% (Wilson)", "kappa", "95%"]
    print_rows("Agreement of readers with the model", columns, (_cells(one) for one in found))
    if apart:
        rows = [list(_listed(one).values()) for one in apart[:LONGEST_LIST]]
        title = f"To look at again: {plural(len(apart), 'verdict')}"
        print_rows(title, ["result", "series", "model", "model says", "reader", "reader says"], rows)
        if len(apart) > LONGEST_LIST:
            out.print(f"and {len(apart) - LONGEST_LIST} more: --json lists all", markup=False)


def _cells(one: Agreement) -> list[object]:
    shown: list[object] = [one.name, one.verdicts, one.cases, one.agree, one.disagree, one.cannot_say]
    for value, span in ((one.share, one.interval), (one.kappa, one.kappa_interval)):
        shown += [
            "-" if value is None else f"{value:.3f}",
            "-" if span is None else f"{span.low:.3f} to {span.high:.3f}",
        ]
    return shown

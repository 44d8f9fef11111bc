"""One attempt to deliver a result: which objects go, in which order, and what the answers mean together."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from dicom_node.gateways.verdict import AttemptOutcome, Verdict
from dicom_node.scu.store import StoreOutcome, StoreResult
from dicom_node.statuses import CLASS_NOT_SUPPORTED
from storage.object_kinds import REPORT_KINDS, ObjectKind
from storage.results import StoredObject

STORED = (StoreOutcome.STORED, StoreOutcome.WARNING)


def send_objects(
    objects: Sequence[StoredObject],
    already: dict[str, int],
    send: Callable[[Sequence[StoredObject]], list[StoreResult]],
) -> dict[str, StoreResult]:
    """Send what an earlier attempt has not stored, the report first, and of the reports the first accepted kind.

    already: statuses by SOP Instance UID of what is stored. send: one association's C-STOREs.
    Returns results by SOP Instance UID, those of `already` included.
    """
    results = {uid: StoreResult(uid, StoreOutcome.STORED, status, "stored before") for uid, status in already.items()}
    reports = sorted((o for o in objects if o.kind.is_report), key=lambda o: REPORT_KINDS.index(o.kind))
    others = [o for o in objects if not o.kind.is_report]
    stored_before = any(o.sop_instance_uid in already for o in reports)
    first = [] if stored_before else reports[:1]
    waiting = [o for o in (*first, *others) if o.sop_instance_uid not in already]
    results |= _by_uid(send(waiting)) if waiting else {}
    for previous, fallback in pairwise(reports):
        refused = results.get(previous.sop_instance_uid)
        if refused is not None and class_refused(refused):
            results |= _by_uid(send([fallback]))
    return results


def class_refused(result: StoreResult) -> bool:
    """True when the destination does not take this class of object at all (PS3.7 C.5.6 has 0x0122 for it)."""
    return result.outcome == StoreOutcome.PERMANENT and result.status in (None, CLASS_NOT_SUPPORTED)


def judge(objects: Sequence[StoredObject], results: dict[str, StoreResult]) -> Verdict:
    """What the C-STORE results mean for the delivery as a whole.

    Any transient failure: try again. Refused: a final failure of an object whose class the destination takes, or no
    object stored that tells the result (a report, or the summary image in its place). If only other classes were not
    taken: delivered, with a remark.
    """
    answered = [(o, results[o.sop_instance_uid]) for o in objects if o.sop_instance_uid in results]
    transient = [(o, r) for o, r in answered if r.outcome == StoreOutcome.TRANSIENT]
    if transient:
        silent = all(r.status is None for _, r in answered)
        return Verdict(AttemptOutcome.UNANSWERED if silent else AttemptOutcome.TRANSIENT, _sentence(transient))
    reported = any(o.kind.is_report for o in objects)
    told = any(o.kind.tells_result or not reported for o, r in answered if r.outcome in STORED)
    final = [(o, r) for o, r in answered if r.outcome == StoreOutcome.PERMANENT and not class_refused(r)]
    refused = [(o, r) for o, r in answered if class_refused(r)]
    if final or not told:
        return Verdict(AttemptOutcome.REFUSED, _sentence(final or refused))
    remarks = refused + [(o, r) for o, r in answered if r.outcome == StoreOutcome.WARNING]
    if not remarks:
        return Verdict(AttemptOutcome.DELIVERED, "")
    return Verdict(AttemptOutcome.DELIVERED, "; ".join(filter(None, [_sentence(remarks), _instead(answered)])))


def _instead(answered: Sequence[tuple[StoredObject, StoreResult]]) -> str:
    """What tells the result if the destination does not take the report in its own class; empty if it does."""
    delivered = {o.kind for o, r in answered if r.outcome in STORED}
    refused = {o.kind for o, r in answered if class_refused(r)}
    if ObjectKind.REPORT not in refused:
        return ""
    told_by = next((kind for kind in ObjectKind if kind.tells_result and kind in delivered), "")
    return f"the result is told by: {told_by}" if told_by else ""


def _sentence(pairs: Sequence[tuple[StoredObject, StoreResult]]) -> str:
    return "; ".join(dict.fromkeys(f"{o.kind}: {r.detail}" for o, r in pairs))


def _by_uid(results: Sequence[StoreResult]) -> dict[str, StoreResult]:
    return {result.sop_instance_uid: result for result in results}

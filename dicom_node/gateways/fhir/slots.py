"""What a statement about a series is called from one result to the next, so that a later one takes its place.

The identifier of a slot does not depend on the images or on the model's version. So the resource that told the first
result is the one that is amended by the second, whichever results in between a server has seen.
"""

from collections import Counter
from collections.abc import Iterator

from config.coding import Code
from dicom_node.gateways.fhir.elements import URI, Element, derived_uuid
from dicom_node.gateways.reported import FindingSaid, ReportedResult
from dicom_node.gateways.sr_content import Number

Statement = FindingSaid | Number


class Slots:
    """The slots of one series and of the model whose result came first there."""

    def __init__(self, result: ReportedResult) -> None:
        self._series_uid = result.series_uid
        self._model = result.first_model

    @property
    def report(self) -> str:
        """Of the report."""
        return self._slot("report")

    @property
    def reason(self) -> str:
        """Of the reason why there is no result."""
        return self._slot("reason")

    def of(self, findings: tuple[FindingSaid, ...], numbers: tuple[Number, ...]) -> Iterator[tuple[str, Statement]]:
        """Each statement of one result with its slot. Of several that say the same, the order tells which is which."""
        seen: Counter[tuple[str, ...]] = Counter()
        statements: list[Statement] = [*findings, *numbers]
        for one in statements:
            said = _said(one)
            seen[said] += 1
            yield self._slot(*said, str(seen[said])), one

    def _slot(self, *said: str) -> str:
        return derived_uuid("slot", self._series_uid, self._model, *said)


def identifier(slot: str) -> Element:
    """A slot as an Identifier."""
    return {"system": URI, "value": slot}


def _said(one: Statement) -> tuple[str, ...]:
    if isinstance(one, FindingSaid):
        return "finding", *_codes(one.concept, one.site, one.laterality)
    return (
        "number",
        one.group,
        *_codes(one.concept, one.finding, one.site, one.laterality, one.topography, one.derivation, one.method),
    )


def _codes(*codes: Code | None) -> tuple[str, ...]:
    return tuple("" if code is None else f"{code.scheme}|{code.value}" for code in codes)

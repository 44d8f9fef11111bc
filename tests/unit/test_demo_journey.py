"""The demonstration does not wait for a report on a series that the node did not take whole."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from dicom_node.demo import journey
from dicom_node.demo.reports import Truth
from dicom_node.errors import NodeError
from dicom_node.scu.push import PushResult


def test_a_series_that_was_not_taken_whole_ends_it_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journey, "_wait_until_listening", lambda *_: None)
    monkeypatch.setattr("dicom_node.scu.push.send", lambda *_, **__: PushResult(33, 7, "the association was cut"))
    case = journey.Case("positive", Truth(True, 1.0), "1.2.3", tmp_path)
    said = io.StringIO()
    with pytest.raises(NodeError, match=r"whole positive series \(the association was cut\); run it again"):
        journey._journey(Console(file=said), tmp_path, None, [case], None, 0)  # type: ignore[arg-type]
    assert "33 slices sent to the node by C-STORE, 7 not taken" in said.getvalue()

"""A job of the scheduler that fails each second says so at growing distances, and at once after it had worked."""

from types import SimpleNamespace

import structlog

from dicom_node.runtime.scheduler import LONGEST_SILENCE_S, Complaints


def test_what_fails_each_second_for_an_hour_fills_no_log() -> None:
    now = 0.0
    complaints = Complaints(clock=lambda: now)
    event = SimpleNamespace(job_id="close series", exception=OSError("the words stay out"))
    with structlog.testing.capture_logs() as logged:
        for second in range(3600):
            now = float(second)
            complaints(event)
        assert 10 <= len(logged) < 30
        assert logged[0]["error"] == "OSError"
        now += 10 * LONGEST_SILENCE_S
        complaints(event)
        now += 1.5  # it fails again: the silence began anew
        before = len(logged)
        complaints(event)
    assert len(logged) == before + 1

"""SIGKILL before and after every durable step of every process of a real node; then nothing is lost, nothing twice.

A few points are tried here; `endurance` tries every point as often as requested. A third of its kills end all processes
of the node. A third also do to the files what a power failure does. A third end only the process at the point.
"""

import os
from pathlib import Path

import pytest

from tests.faults import points
from tests.faults.scenarios import NO_AFTER, STEPS, Life
from tests.zygote import Zygote

ROUNDS = int(os.environ.get("NODE_FAULT_ROUNDS", "0"))
SCENARIOS = {scenario.__name__: scenario for scenario in STEPS}
POINTS = [
    (scenario.__name__, f"{process}:{step}:{moment}")
    for scenario, processes in STEPS.items()
    for process, steps in processes.items()
    for step in steps
    for moment in ("before", "after")
    if not (moment == "after" and f"{scenario.__name__} {process} {step}" in NO_AFTER)
]
SCOPES = ("tree", "power", "process")
FEW = [
    ("report", "run:storage.reconcile.reconcile:after", "tree"),
    ("report", "receive:dicom_node.receiver.committer.Committer._write:after", "tree"),
    ("report", "receive:storage.folder.FolderFile.commit:after", "process"),
    ("report", "receive:c-store-response:after", "power"),
    ("report", "work:dicom_node.analysis.worker.Worker._commit:after", "power"),
    ("report", "work:dicom_node.analysis.worker.Worker._commit:before", "tree"),
    ("report", "work:dicom_node.analysis.worker.Worker._commit:after", "tree"),
    ("report", "deliver:c-store:after", "tree"),
    ("report", "deliver:dicom_node.delivery.commitment.record_answer:before", "tree"),
    ("resend", "receive:storage.held.rely_on_held:after", "tree"),
    ("report", "receive:dicom_node.receiver.committer.Committer._write:before", "tree"),
    ("report", "schedule:dicom_node.completion.closing.Completion._close:after", "tree"),
    ("report_in_bucket", "receive:storage.bucket.Bucket.put_new:after", "tree"),
    ("report_in_bucket", "receive:c-store-response:before", "power"),
    ("two_models", "work:dicom_node.analysis.worker.Worker._commit:after", "tree"),
    ("second_of_two", "work:dicom_node.analysis.worker.Worker._commit:before", "power"),
    ("second_of_two", "deliver:c-store:after", "tree"),
    ("archive", "deliver:http:after", "tree"),
    ("told", "deliver:dicom_node.delivery.ways.MessagesWay._compose:after", "tree"),
    ("told", "deliver:http:after", "tree"),
    # In one life: while slices are fetched, between each message and its acknowledgement, after a rejection was heeded.
    (
        "other_systems",
        "schedule:http:after 3\ndeliver:mllp:after\n"
        "schedule:dicom_node.completion.closing.Completion._close:after 2\ndeliver:mllp:after 3",
        "tree",
    ),
]
# Commands and pages: the person who acted sees that it failed, and acts again.
COMMANDS = (
    "dicom_node.web.",
    "dicom_node.cli.",
    "dicom_node.analysis.replay.",
    "dicom_node.runtime.adoption.",
    # Killed at each of its steps by tests/unit/test_storage_forget.py.
    "dicom_node.runtime.forgetting.",
    "storage.forgotten_trail.",
    "dicom_node.batch.creating.",
    "dicom_node.batch.report.",
    "dicom_node.backup.",
)
# Not in a running node (the demonstration, certificates), or an empty folder that is made at every start.
ELSEWHERE = {
    "dicom_node.runtime.supervisor.Supervisor.run",
    # The children's copy of the configuration, made anew at every start.
    "dicom_node.runtime.reloading.Copy.remove",
    "dicom_node.runtime.reloading.Copy.take",
    # A change of configuration that was killed has not happened.
    "dicom_node.runtime.supervisor.Supervisor._audit",
    # Always rolled back.
    "dicom_node.receiver.committer.Committer._warm_up",
    "dicom_node.demo.journey._answers",
    "dicom_node.demo.journey._empty",
    "dicom_node.demo.pacs.Pacs.__init__",
    "dicom_node.demo.pacs.Pacs._on_store",
    "dicom_node.receiver.certificates.Authority.issue",
    "dicom_node.receiver.certificates.Authority.write",
    "dicom_node.receiver.certificates._write_private",
    "dicom_node.analysis.result_objects.write_objects",
    # Only when the schema changes; test_storage_upgrade.py makes it fail.
    "storage.backup.back_up",
    # A look at a watched model, which begins again where a killed one stopped: test_watching.py.
    "dicom_node.runtime.watching._begin",
    "dicom_node.runtime.watching._look_at",
    "dicom_node.runtime.watching.look",
    # Pictures for a person, and a file that measures how fast the disk syncs.
    "dicom_node.watch.plots.draw",
    "dicom_node.runtime.installation.disk.sync_times_s",
    # An empty folder; `_make_durably` syncs those whose names matter.
    "storage.private.make_folder",
    # For instances that were promised to nobody and are requested again.
    "dicom_node.completion.retrieve.Keeper._remember",
    # Ends a wait for a confirmation that nobody can give any more; after a kill it ends again.
    "dicom_node.delivery.sender.DestinationSender._ask_no_more",
    # Brings the end of a wait forward; after a kill it is asked for again, or the wait ends by itself.
    "dicom_node.completion.closing.Completion._end_study_wait",
    # After a kill the PACS is asked again.
    "dicom_node.completion.still_there.StillThere._judge",
    # Every start counts anew and corrects what differs.
    "storage.reconcile._correct_tallies",
    # Which series is analysed ahead; whoever dies of one leaves its note, in test_analysed_ahead.py.
    "dicom_node.analysis.ahead_notes.AheadNotes.end",
    "dicom_node.analysis.ahead_notes.AheadNotes._forget_old",
    # A command, which goes on where a killed one stopped: test_storage_audit_archive.py stops it at each step.
    "storage.audit_archive._archive",
    "storage.audit_archive._write",
    "storage.audit_archive.new_file",
    "storage.audit_archive._delete_archived",
    # A command, which goes on where a killed one stopped: test_index_move.py.
    "storage.moving.Mover.begin",
    "storage.moving.Mover._copy_on",
    "storage.moving.Mover._copy_whole",
    "storage.moving.Mover.finish",
    "storage.moving.Mover._number_on",
    # Copies of what is in a bucket, and what is on its way there: never promised to anybody. The next process of the
    # machine removes what a killed one leaves.
    "storage.bucket_store.BucketFile.discard",
    "storage.bucket_store.BucketStore._bring",
    "storage.cache.Cache.forget",
    "storage.workspace.Workspace._remove_abandoned",
    # When a bucket was listed last. If that is not noted, it is listed again.
    "storage.orphans.sweep_regularly",
    # Batches, which test_batch_kills.py kills, at these steps and at random.
    "dicom_node.batch.feeder.Feeder._from_pacs",
    "dicom_node.batch.feeder.Feeder._give_up",
    "dicom_node.batch.feeder.Feeder._queue_stored",
    "dicom_node.batch.feeder.Feeder._run",
    "dicom_node.batch.feeder.Feeder._settle",
    "dicom_node.batch.feeder.Feeder._take",
    "dicom_node.batch.feeder.Feeder._try_later",
    "dicom_node.batch.importing.Importer.run",
    "dicom_node.batch.pacs.Keeper._keep",
    # What is told to an audit repository: test_audit_messages.py stops it between sending and noting it.
    "dicom_node.gateways.audit_messages.forwarder.Forwarder._claim",
    "dicom_node.gateways.audit_messages.forwarder.Forwarder._keep",
    "dicom_node.gateways.audit_messages.forwarder.Forwarder._note_failure",
    # Steps of a worklist: test_worklist_kills.py kills before and after each of these.
    "dicom_node.performer.performer.Performer._advance",
    "dicom_node.performer.performer.Performer._begin",
    "dicom_node.performer.performer.Performer._is_cancelled",
    "dicom_node.performer.performer.Performer._look",
    "dicom_node.performer.performer.Performer._read",
    "dicom_node.performer.performer.Performer._start",
    "dicom_node.performer.performer.Performer._take",
    "dicom_node.performer.performer.Performer._wait",
    # Whether the worklist answers, for a person: said again when it is asked again.
    "dicom_node.performer.performer.Performer._note_answer",
    "dicom_node.performer.performer.Performer._note_away",
    # Before it is done, nobody but this process knows that something was sent late; docs/gateways/README.md says so.
    # After it, another sender goes on: test_overtaken_senders.py.
    "dicom_node.delivery.ways.MessagesWay.set_right",
    # Noted before the worklist is answered; an event that was not answered is no promise.
    "dicom_node.performer.events.EventListener._cancel",
    # Only says in the audit trail what became of a fetch.
    "dicom_node.performer.opening.Fetching._note",
    "dicom_node.performer.web_fetching.WebFetching._note",
    # Only with PostgreSQL, where several hosts are: test_hosts.py kills those.
    "dicom_node.runtime.presence.Presence.begin",
    "dicom_node.runtime.presence.Presence._beat",
    "dicom_node.runtime.presence.Presence.end",
    "storage.leader.Leadership._begin_term",
    # Notifications: test_notifications.py stops them while they are made and while they are sent.
    "dicom_node.gateways.notifications.gathering.Gathering.gather",
    "dicom_node.gateways.notifications.notifier.Notifier._settle",
    "dicom_node.gateways.notifications.notifier.Notifier.send_one",
    # Canaries: test_canaries.py kills before and after each commit. Its files are copies, made anew.
    "dicom_node.canary.runner.Canaries._clear",
    "dicom_node.canary.runner.Canaries._end",
    "dicom_node.canary.runner.Canaries._judge",
    "dicom_node.canary.runner.Canaries._note_stale",
    "dicom_node.canary.runner.Canaries._prepare",
    "dicom_node.canary.runner.Canaries._send",
    "dicom_node.canary.runner.ask",
    "dicom_node.canary.study._synthetic",
    "dicom_node.canary.study.write_copy",
    # Removes what was never promised to anybody; the sweep removes what it leaves behind.
    "storage.folder.FolderFile.discard",
}


def test_the_code_has_no_durable_step_that_is_not_killed_at() -> None:
    killed_at = {step for processes in STEPS.values() for steps in processes.values() for step in steps}
    in_code = {step for step in points.transactions() | points.file_steps() if not step.startswith(COMMANDS)}
    assert in_code - ELSEWHERE - killed_at == set()
    assert ELSEWHERE - in_code == set(), "steps that are gone"


@pytest.mark.parametrize("name", SCENARIOS if ROUNDS else ["two_models", "drain"])
def test_without_a_kill_no_process_takes_a_step_that_is_not_killed_at(
    name: str, zygote: Zygote, tmp_path: Path
) -> None:
    node = SCENARIOS[name](Life(zygote, tmp_path))
    declared = {point for _, point in POINTS} | {f"{p}:{m}" for p in _before_only() for m in ("before", "after")}
    discards = {point for point in node.points() if "NewFile.discard" in point}
    assert node.points() - declared - discards == set()


def _before_only() -> set[str]:
    return {":".join(entry.split(" ")[1:]) for entry in NO_AFTER}


@pytest.mark.parametrize(("name", "point", "scope"), FEW)
def test_after_a_kill_nothing_is_lost_and_nothing_comes_twice(
    name: str, point: str, scope: str, zygote: Zygote, tmp_path: Path, figures: list[str]
) -> None:
    node = SCENARIOS[name](Life(zygote, tmp_path, point, scope))
    assert node.died, "the point was never reached"
    figures.append(f"killed, nothing lost or twice: {name} {point} {scope}")

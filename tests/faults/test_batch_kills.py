"""Two batches, of the store and of a folder, in a node that is killed again and again: each case has one result.

NODE_BATCH_SERIES=n takes n series, NODE_BATCH_KILLS=n kills n times (`make batch-kills`: 10,000 and ten).
NODE_RANDOM_SEED repeats the choices of a run. With NODE_FAULT_ROUNDS the feeder is killed at each of its steps.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicom_node.cli.app import app
from storage import tallies
from storage.audit_check import check
from tests.faults.campaign import ROOT, Node, Pacs, ct_series
from tests.faults.scenarios import part10, with_number
from tests.faults.test_random_kills import ROUNDS, SEED, kill_one_way_or_another
from tests.programs import wait_for
from tests.zygote import Zygote

SERIES = int(os.environ.get("NODE_BATCH_SERIES", "120"))
KILLS = int(os.environ.get("NODE_BATCH_KILLS", "3"))
SENT = min(500, SERIES // 10)
SLICES = 3
MODEL = "demonstration"
PATIENCE_S = 120.0 + 2.0 * SERIES
VARIABLES = {
    "DICOM_NODE_BATCH__ENABLED": "true",
    "DICOM_NODE_BATCH__AHEAD": "100",
    "DICOM_NODE_WORKER__DEVICES": '["cpu", "cpu"]',
    # Series that are sent are kept and not analysed: only the batches analyse.
    "DICOM_NODE_SOURCES": json.dumps([{"ae_title": "ATTACKER", "series": {"descriptions": ["no such"]}}]),
}
STEPS = (
    "Feeder._take:after",
    "Importer.run:before",
    "Importer.run:after",
    "Feeder._run:before",
    "Feeder._run:after",
    "Feeder._settle:after",
    "Feeder._queue_stored:before",
)
FEW = ("Feeder._run:before", "Feeder._settle:after")
MODULES = {"Feeder": "dicom_node.batch.feeder", "Importer": "dicom_node.batch.importing"}


def write_tree(folder: Path, series: int) -> None:
    """Series in folders of their own; one has a file that cannot be read, one comes in two folders."""
    made = ct_series(SLICES)
    for number in range(series):
        here = folder / f"{number // 100:03d}" / f"{number:05d}"
        here.mkdir(parents=True)
        for place, (uid, data) in enumerate(with_number(made, number).items()):
            below = here / "more" if number == 1 and place == 0 else here
            below.mkdir(exist_ok=True)
            (below / f"{place}.dcm").write_bytes(part10(uid, data))
    (folder / "000" / "00000" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 64)


def command(node: Node, *arguments: str) -> str:
    """Run `dicom-node` in this process, with the node's settings."""
    done = CliRunner().invoke(app, [*arguments], env={k: str(v) for k, v in node.variables.items()})
    assert done.exit_code == 0, f"{done.output} {done.exception}"
    return done.output


def create(node: Node, source: str) -> int:
    """Create a batch, with a creation that is killed first."""
    arguments = ["batch", "create", "--from", source, "--model", MODEL, "--json"]
    if source.startswith("folder") and SERIES >= 1000:
        doomed = subprocess.Popen([sys.executable, "-m", "dicom_node", *arguments], cwd=ROOT, env=node.variables)
        begun = "SELECT state FROM batches WHERE source = 'folder' AND cases > 300"
        wait_for(lambda: bool(node.rows(begun)), 120, "it has begun")
        doomed.kill()
        doomed.wait()
        assert node.rows(begun)[0]["state"] == "CREATING"
    return int(json.loads(command(node, *arguments))["batch"])


def ended(node: Node) -> int:
    """How many cases of all batches have ended."""
    node.tend()
    rows = node.rows("SELECT SUM(done + without_result) AS ended FROM batches")
    return int(rows[0]["ended"] or 0) if rows else 0


def assert_one_result_each(node: Node, pacs: Pacs, series: int) -> dict[str, int]:
    """Every case ended once, apart from all that is live; and nothing is left behind."""
    [counts] = node.rows(
        "SELECT COUNT(*) AS cases, COUNT(DISTINCT batch_id || series_uid) AS series, "
        "COUNT(DISTINCT result_id) AS results FROM batch_cases WHERE state = 'DONE'"
    )
    assert counts == {"cases": series - 1, "series": series - 1, "results": series - 1}
    [without] = node.rows("SELECT reason_code FROM batch_cases WHERE state <> 'DONE'")
    assert without == {"reason_code": "CORRUPT_INSTANCE"}
    wrong = (
        "SELECT job_id FROM results GROUP BY job_id HAVING COUNT(*) > 1",
        "SELECT id FROM results WHERE batch_id IS NULL OR outcome <> 'ANALYSED'",
        "SELECT id FROM jobs WHERE state <> 'REPORTED' OR batch_id IS NULL",
        "SELECT job_id FROM batch_cases GROUP BY job_id HAVING COUNT(*) > 1 AND job_id IS NOT NULL",
        "SELECT id FROM batches WHERE state <> 'DONE' OR queued <> 0 OR cases <> done + without_result",
        "SELECT id FROM deliveries UNION SELECT id FROM result_objects",
        "SELECT result_id FROM audit WHERE event = 'result.recorded' GROUP BY result_id HAVING COUNT(*) <> 1",
        # Imported images are gone, those that were sent are not.
        "SELECT instances.id FROM instances JOIN series ON series.id = series_pk WHERE imported = (gone_at IS NULL)",
        "SELECT id FROM series WHERE imported AND series_instance_uid NOT LIKE '%#%'",
    )
    assert {query: node.rows(query) for query in wrong} == {query: [] for query in wrong}
    assert pacs.received == []
    database = node.database()
    with database.read() as tx:
        assert check(tx).problems == ()
        assert tallies.differences(tx) == {}
    database.close()
    return dict(counts)


@pytest.mark.timeout(600 + int(PATIENCE_S))
def test_a_batch_that_is_killed_again_and_again_has_one_result_for_each_series(
    zygote: Zygote, tmp_path: Path, figures: list[str]
) -> None:
    choose, pacs = random.Random(SEED), Pacs()
    node = Node(zygote, tmp_path, pacs.port, **VARIABLES)
    of_folder, ways = SERIES - SENT, []
    write_tree(tmp_path / "scans", of_folder)
    began = time.monotonic()
    try:
        node.start()
        wait_for(lambda: node.listens, 60, "the node listens")
        for _ in range(SENT):
            node.send(ct_series(SLICES), {})
        closed = "SELECT COUNT(*) AS n FROM series WHERE state = 'CLOSED' AND refusal_code = 'NOT_WANTED'"
        wait_for(lambda: node.rows(closed)[0]["n"] == SENT, 60, "the series that were sent are closed")
        create(node, "store")
        create(node, f"folder {tmp_path / 'scans'}")
        working = time.monotonic()
        for number in range(KILLS):
            goal = max(SERIES * (number + 1) // (KILLS + 1), 1)
            wait_for(lambda: ended(node) >= goal, PATIENCE_S, f"{goal} cases end")  # noqa: B023
            ways.append(kill_one_way_or_another(node, choose))
        wait_for(lambda: ended(node) == SERIES, PATIENCE_S, "every case ends")
        done = "SELECT 1 FROM batches WHERE state <> 'DONE'"
        wait_for(lambda: (node.tend(), not node.rows(done))[1], 30, "the batches are done")
        took_s = time.monotonic() - working
        counts = assert_one_result_each(node, pacs, SERIES)
        node.end()
    except AssertionError as error:
        raise AssertionError(f"seed {SEED}: {error}: {node.describe()}") from error
    finally:
        node.kill()
        pacs.stop()
    kinds = {way: ways.count(way) for way in sorted(set(ways))}
    figures.append(
        f"batches, seed {SEED}: {SERIES} series of {SLICES} slices, kills {kinds}, "
        f"starts {node.starts}; {counts}; {SERIES / took_s:.1f} series/s with the kills, "
        f"{working - began:.0f} s until the batches ran; lost 0, twice 0, stuck 0"
    )


@pytest.mark.timeout(1200)
def test_a_kill_at_each_step_of_the_feeder_leaves_one_result_for_each_series(
    zygote: Zygote, tmp_path: Path, figures: list[str]
) -> None:
    pacs = Pacs()
    node = Node(zygote, tmp_path, pacs.port, **VARIABLES)
    write_tree(tmp_path / "scans", 8)
    try:
        node.start()
        wait_for(lambda: node.listens, 60, "the node listens")
        node.send(ct_series(SLICES), {})
        closed = "SELECT 1 FROM series WHERE refusal_code = 'NOT_WANTED'"
        wait_for(lambda: bool(node.rows(closed)), 60, "the series that was sent is closed")
        died = 0
        for step in STEPS if ROUNDS else FEW:
            (node.faults / "done.0").unlink(missing_ok=True)
            node.configure(kill=f"schedule:{MODULES[step.partition('.')[0]]}.{step}", scope="process")
            if died == 0:
                create(node, "store")
                create(node, f"folder {tmp_path / 'scans'}")
            all_ended = wait_or(node, 9)
            died += node.died
            if all_ended:
                break
        node.configure(kill="", scope="tree")
        wait_for(lambda: ended(node) == 9, 60, "every case ends")
        wait_for(lambda: not node.rows("SELECT 1 FROM batches WHERE state <> 'DONE'"), 30, "the batches are done")
        assert_one_result_each(node, pacs, 9)
        node.end()
    except AssertionError as error:
        raise AssertionError(f"{error}: {node.describe()}") from error
    finally:
        node.kill()
        pacs.stop()
    assert died >= len(FEW), "the feeder was killed"
    figures.append(f"batches: the feeder was killed at {died} of its steps; one result for each series")


def wait_or(node: Node, cases: int) -> bool:
    """Until the fail point is reached (False), or all cases have ended (True)."""
    wait_for(lambda: ended(node) == cases or node.died, 60, "the point is reached, or all cases end")
    return not node.died

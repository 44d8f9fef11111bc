"""Runs the demonstration model on DICOM phantoms at a scanner's resolution, through the node's own pipeline.

    python -m benchmarks.demonstration --volumes 24 --json predictions.json

The phantoms are from the test population, with seeds that neither the training nor its test has used. Prints truth,
probability and Dice of the reported lung mask for each, then ROC AUC (95%: DeLong) and mean Dice. The suitability
rules apply as in the node, and refusals are counted.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from inference.covid.loading import load_pipeline
from inference.covid.pipeline import Pipeline
from inference.errors import UnsuitableSeries
from inference.evaluation.intervals import delong
from inference.evaluation.overlap import dice
from inference.models.registry import find_model
from inference.phantom.series import write_series
from inference.training.cohort import TEST, draw_phantom
from inference.training.decovnet_training import roc_auc
from inference.volume.load import load

SEEDS_FROM = 10_000
POPULATION = replace(TEST, sizes=(512,), slices=(40, 110))


def judge(pipeline: Pipeline, seed: int) -> dict[str, object]:
    """What the node says about one phantom, and the truth."""
    phantom = draw_phantom(POPULATION, seed)
    row: dict[str, object] = {"seed": seed, "covid": phantom.covid, "lesions": phantom.lesions}
    row |= {"confounders": phantom.confounders, "slices": len(phantom.hu)}
    with tempfile.TemporaryDirectory() as folder:
        volume = load(write_series(phantom, Path(folder)))
        try:
            finding = pipeline.run(volume)
        except UnsuitableSeries as error:
            return row | {"refused": error.code}
    return row | {"probability": finding.probability, "dice": dice(finding.lung_mask, phantom.lung_mask)}


def main() -> None:
    """The command line of `python -m benchmarks.demonstration`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=24)
    parser.add_argument("--model", type=Path, help="a model's folder; the demonstration model if absent")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the rows")
    chosen = parser.parse_args()
    pipeline = load_pipeline(chosen.model or find_model(Path("none"), "demonstration"), "cpu", threads=chosen.threads)
    started, rows = time.monotonic(), []
    for number in range(chosen.volumes):
        rows.append(judge(pipeline, SEEDS_FROM + number))
        sys.stdout.write(f"{json.dumps(rows[-1])}\n")
        sys.stdout.flush()
    judged = [row for row in rows if "refused" not in row]
    labels, found = [bool(row["covid"]) for row in judged], [float(str(row["probability"])) for row in judged]
    interval = delong(np.array(labels), np.array(found))
    summary = {
        "volumes": len(rows),
        "refused": len(rows) - len(judged),
        "roc_auc": round(roc_auc(labels, found), 4),
        "roc_auc_95": [round(interval.low, 4), round(interval.high, 4)] if interval else None,
        "right_at_threshold": sum((p >= pipeline.card.threshold) == y for p, y in zip(found, labels, strict=True)),
        "lung_dice_mean": round(float(np.mean([float(str(row["dice"])) for row in judged])), 4),
        "seconds": round(time.monotonic() - started),
    }
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    if chosen.json:
        chosen.json.write_text(json.dumps({"rows": rows, "summary": summary}, indent=1) + "\n")


if __name__ == "__main__":
    main()

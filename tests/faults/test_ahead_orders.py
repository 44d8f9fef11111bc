"""Series that arrive in any order, late and in part, at a worker that analyses ahead: each result is the plain one.

The short cut takes a phantom and the demonstration model. `make ahead` takes the parity cases, the authors' networks
and fifty orders.
"""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from tests.ahead_orders import arriving, in_pieces
from tests.conftest import SHARED

ORDERS = int(os.environ.get("NODE_AHEAD_ORDERS", "0"))
PARITY = ("MD04_every2nd", "MD05_every2nd", "lungdx_A0002_B40f_30slices")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The authors' networks for the campaign; else those that come with the node."""
    if not ORDERS:
        return None
    from inference.covid.weights import import_authors

    folder = tmp_path_factory.mktemp("models")
    weights = SHARED / "weights"
    import_authors(weights / "unet.pth", weights / "ncov-Epoch_00140-auc95p9.pth", folder)
    return folder


def cases(folder: Path) -> list[list[Path]]:
    if ORDERS:
        return [
            sorted(path for path in (SHARED / "data" / "dicom" / name).rglob("*") if path.is_file()) for name in PARITY
        ]
    return [write_series(make_phantom(14, slices=40, size=256), folder)]


def said(
    folder: Path, models: Path | None, pieces: list[list[Path]], seed: int | None, whole: int = 0
) -> dict[str, Any]:
    """What is said of a series.  pieces: what comes before and after the worker had time.  seed: of the order in which
    they come; None: all at once, to a worker that does not analyse ahead.  whole: how many slices a PACS counts, which
    is asked in three of four orders, and is wrong in one."""
    with arriving(folder, ahead=seed is not None, models=models) as node:
        if seed is not None and seed % 4:
            node.counts(whole + 5 if seed % 4 == 3 else whole)
        for piece in pieces:
            if seed is None:
                node.receive(piece)
            else:
                in_pieces(node, piece, seed)
                node.settle() if seed % 2 else None
        node.close()
        return node.analyse()


@pytest.mark.timeout(0)
def test_in_any_order_the_result_is_the_plain_one(tmp_path: Path, models: Path | None, figures: list[str]) -> None:
    counts = {"orders": 0, "late": 0, "missing": 0}
    for number, paths in enumerate(cases(tmp_path / "case")):
        plain = said(tmp_path / f"plain{number}", models, [paths], None)
        for order in range(number, ORDERS or 1, len(PARITY)):
            late = random.Random(order).sample(paths, 3)
            pieces = [[path for path in paths if path not in late], late] if order % 3 else [paths]
            found = said(tmp_path / f"{number}-{order}", models, pieces, order, len(paths))
            assert found == plain and found["outcome"] == "ANALYSED", f"case {number}, order {order}"
            counts["orders"] += 1
            counts["late"] += len(pieces) == 2
        partial = [path for path in paths if path not in random.Random(number).sample(paths[3:-3], 2)]
        found = said(tmp_path / f"part{number}", models, [partial], number + 1, len(paths))
        assert found == said(tmp_path / f"plainpart{number}", models, [partial], None) and found["reason_code"]
        counts["missing"] += 1
    figures.append(f"analysed ahead: {counts}, all results as without")

"""From a map of labels to what the node reports: a segment and a volume for each label of the card."""

import numpy as np

from inference.plug import Algorithm, Code, Measurement, Output, Run, Segment

VOLUME = Code("118565006", "SCT", "Volume")
MILLILITRE = Code("mL", "UCUM", "milliliter")


def output_of(labels, card, volume, versions) -> Output:
    """labels: integers (Z, Y, X) on the grid of the volume.

    `[[settings.labels]]` of the card: value, title, category and type (each value, scheme, meaning), and whether the
    label is "anatomy" or a "finding".
    """
    segments, measurements = [], []
    for label in card.settings["labels"]:
        mask = np.asarray(labels) == label["value"]
        category, kind = Code(*label["category"]), Code(*label["type"])
        purpose = label.get("purpose", "anatomy")
        segments.append(Segment(label["title"], mask, category, kind, purpose, algorithm=card.name))
        ml = float(mask.sum()) * volume.voxel_ml
        measurements.append(Measurement(VOLUME, ml, MILLILITRE, site=kind, segment=label["title"], decimals=0))
    return Output(
        measurements=tuple(measurements),
        segments=tuple(segments),
        algorithms=(Algorithm(card.name, "Segmentation"),),
        run=Run(precision="float32", versions=versions),
    )

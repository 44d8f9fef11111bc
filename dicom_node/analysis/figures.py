"""The figures that a report prints about its model: the site's own once there are some, else the published ones."""

from pathlib import Path

import structlog

from inference.errors import ModelError
from inference.models.cards import Card, OperatingPoint
from inference.models.site_evaluation import read_site_evaluation

log = structlog.get_logger()


def figures_of(card: Card, models_dir: Path) -> tuple[OperatingPoint, ...]:
    """What a report says about the model's thresholds.

    If the site's own evaluation cannot be read, the published figures are given: they claim nothing about this site.
    """
    try:
        own = read_site_evaluation(models_dir, card.digest())
    except ModelError as error:
        log.error("the site's own evaluation cannot be used", reason=str(error))
        own = None
    return card.operating_points if own is None else (own.operating_point(),)

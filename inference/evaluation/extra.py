"""The optional packages of the extra `evaluate`, imported when they are used."""

from importlib import import_module
from types import ModuleType

from inference.evaluation.errors import MissingExtra

DISTRIBUTIONS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def load(module: str) -> ModuleType:
    """Import a module of one of these packages. Raises MissingExtra, which says what to install."""
    try:
        import_module(module.split(".")[0])
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(DISTRIBUTIONS[module.split(".")[0]]) from error


def require_all() -> None:
    """Raise MissingExtra unless all packages are installed; called before a model runs for hours."""
    for module in DISTRIBUTIONS:
        load(module)

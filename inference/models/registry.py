"""Which models are available, and which one is used; free of torch, so that any command may ask."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from inference.errors import ModelError
from inference.models.cards import CARD_FILE, Card, read_card, shipped_folder, write_card

DEMONSTRATION = "demonstration"
ACTIVE_FILE = "active"


def find_model(models_dir: Path, name: str | None = None, version: str | None = None) -> Path:
    """The folder of a model's card and weights.

    models_dir: folder of imported models; need not exist.
    name: None means the active imported model, or the demonstration model if none was imported.
    version: None means the active version of that name, or its only one.
    Raises ModelError if there is no such model, or if there are several and none of them is active.
    """
    active = active_model(models_dir)
    if name is None:
        return active or shipped_folder() / DEMONSTRATION
    found = [folder for folder in model_folders(models_dir) if _matches(read_card(folder), name, version)]
    if active in found or len(found) == 1:
        return active if active in found and active is not None else found[0]
    wanted = name if version is None else f"{name} {version}"
    if not found:
        raise ModelError(
            f"no model {wanted}; there are: {', '.join(_names(models_dir)) or 'none'}. "
            "`dicom-node models import` brings the authors' networks in; to add your own: docs/add-your-model.md"
        )
    raise ModelError(f"{len(found)} models are called {wanted}; import the wanted one again to make it active")


def list_models(models_dir: Path) -> list[Card]:
    """The cards of all models that have weights: imported ones, then shipped ones.

    Raises ModelError when a card cannot be read.
    """
    return [read_card(folder) for folder in model_folders(models_dir)]


def is_demonstration(models_dir: Path, name: str, digest: str) -> bool:
    """Whether a demonstration model has or had this name, or has this digest: its results are not findings.

    Raises ModelError when a card cannot be read.
    """
    if name == DEMONSTRATION:  # in any version: the card may have been replaced since
        return True
    return any(card.identity().demonstration and card.identity().digest == digest for card in list_models(models_dir))


def model_folders(models_dir: Path) -> list[Path]:
    """Folders of all models that have weights, imported ones first, each group sorted by name."""
    imported = [path.parent for path in sorted(models_dir.glob(f"*/{CARD_FILE}")) if path.parent.name[0] != "."]
    shipped = [path.parent for path in sorted(shipped_folder().glob(f"*/{CARD_FILE}"))]
    return imported + [folder for folder in shipped if _has_weights(folder)]


def active_model(models_dir: Path) -> Path | None:
    """The folder that the last import made active, or None.

    Raises ModelError if the mark names a missing folder.
    """
    try:
        name = (models_dir / ACTIVE_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    if Path(name).name != name or not (models_dir / name / CARD_FILE).is_file():
        raise ModelError(f"{models_dir / ACTIVE_FILE}: names a model that is not there; import it again")
    return models_dir / name


def make_active(models_dir: Path, folder_name: str) -> None:
    """Atomically make an imported model the default."""
    temporary = models_dir / f".{ACTIVE_FILE}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(folder_name + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, models_dir / ACTIVE_FILE)
    sync_folder(models_dir)


def install_folder(card: Card, models_dir: Path, fill: Callable[[Path], None], *, activate: bool) -> Path:
    """Write a model's folder durably, all or nothing: its card, and the files that `fill` writes into a folder.

    activate: also make it the model that is used where the settings name none. Returns the folder.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    folder = models_dir / f"{card.name}-{card.digest()[:16]}"
    temporary = Path(tempfile.mkdtemp(prefix=".importing-", dir=models_dir))
    try:
        fill(temporary)
        write_card(card, temporary)
        _sync_files(temporary)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(models_dir)
    if activate:
        make_active(models_dir, folder.name)
    return folder


def _sync_files(folder: Path) -> None:
    """Make the files of a folder durable, and the folders that name them."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _has_weights(folder: Path) -> bool:
    """True if the weights lie beside a shipped card: the card of the authors' networks comes without them."""
    return all((folder / weights.file).is_file() for weights in read_card(folder).weight_files().values())


def _matches(card: Card, name: str, version: str | None) -> bool:
    return card.name == name and version in (None, card.version)


def _names(models_dir: Path) -> list[str]:
    return [f"{card.name} {card.version}" for card in list_models(models_dir)]

"""models import, models publish, models show and models list."""

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    out,
    print_json,
    print_rows,
    say,
    settings_from,
)

group = typer.Typer(no_args_is_help=True, help="Import, publish, show and list models.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="models")


@group.command("import")
def import_(
    unet: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The authors' U-Net checkpoint (unet.pth).")],
    decovnet: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The authors' DeCoVNet checkpoint.")],
    allow_unverified: Annotated[
        bool,
        typer.Option(help="Import checkpoints of the same architecture whose SHA-256 is not known; marked unverified."),
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Verify the authors' checkpoints by SHA-256, keep them as safetensors, and make them the node's model."""
    settings = settings_from(config)
    import time

    from inference.covid.weights import import_authors
    from storage import audit

    card = import_authors(unet, decovnet, settings.models_dir, allow_unverified=allow_unverified)
    identity = card.identity()
    with database_of(settings, create=True).transaction() as tx:
        detail = {
            "name": identity.name,
            "version": identity.version,
            "digest": identity.digest,
            "verified": identity.verified,
        }
        audit.append(tx, time.time(), "model.imported", outcome="IMPORTED", detail=detail)
    if json:
        print_json(detail)
    else:
        state = "verified" if identity.verified else "UNVERIFIED"
        out.print(f"imported {identity.name} {identity.version} ({state}), digest {identity.digest[:16]}", markup=False)


@group.command()
def publish(
    run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of train decovnet.")],
    name: Annotated[str, typer.Option(help="Name of the model, as [model] name will give it.")],
    version: Annotated[str, typer.Option(help="Its version; a name and version stand for one model, always.")],
    evaluation: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="evaluation.json of evaluate --model-folder RUN.")
    ] = None,
    threshold: Annotated[float, typer.Option(min=0.001, max=0.999, help="At or above which it is positive.")] = 0.5,
    title: Annotated[str, typer.Option(help="Default: made of name and version.")] = "",
    source: Annotated[str | None, typer.Option(help="Where it comes from.")] = None,
    licence: Annotated[str, typer.Option(help="Of the weights.")] = "not stated",
    intended_use: Annotated[str | None, typer.Option(help="What it is for, and what it is not for.")] = None,
    activate: Annotated[
        bool, typer.Option("--activate", help="Also use it if the settings name no model. Reports change at once.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Give a trained model its card, with data, figures and digests, and put it where the node finds it."""
    settings = settings_from(config)
    import time

    from inference.training.publish import Publication
    from inference.training.publish import publish as install
    from storage import audit

    said = {"source": source, "intended_use": intended_use}
    publication = Publication(
        name, version, threshold, title, licence=licence, **{key: text for key, text in said.items() if text}
    )
    card = install(run, settings.models_dir, publication, evaluation=evaluation, activate=activate)
    detail = {"name": name, "version": version, "digest": card.digest(), "activated": activate}
    with database_of(settings, create=True).transaction() as tx:
        audit.append(tx, time.time(), "model.published", outcome="PUBLISHED", detail=detail)
    if json:
        print_json({**detail, "unet_sha256": card.unet.sha256, "decovnet_sha256": card.decovnet.sha256})
        return
    out.print(f"published {name} {version}, digest {card.digest()[:16]}", markup=False)
    if not activate:
        out.print(f'use it with [model] name = "{name}", version = "{version}"; or shadow = "{name}"', markup=False)


@group.command()
def show(
    name: Annotated[str | None, typer.Argument(help="Name of the model; default: the one in use.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version, if several have that name.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """What a model is, what it was made for, and the figures that its reports print, with where these are from."""
    settings = settings_from(config)
    from dicom_node.analysis.figures import figures_of
    from inference.models.cards import read_card
    from inference.models.registry import find_model

    wanted = (name, version) if name else (settings.model.name or None, settings.model.version or None)
    card = read_card(find_model(settings.models_dir, *wanted))
    figures = [vars(point) for point in figures_of(card, settings.models_dir)]
    facts = {key: getattr(card, key) for key in ("title", "source", "licence", "intended_use", "threshold")}
    if json:
        print_json({"name": card.name, "version": card.version, **facts, "digest": card.digest(), "figures": figures})
        return
    say(f"{card.name} {card.version}")
    for key, value in {**facts, "digest": card.digest()}.items():
        say(f"  {key.replace('_', ' '):13} {value}")
    for point in figures:
        shares = f"sensitivity {point['sensitivity']:.3f}, specificity {point['specificity']:.3f}"
        say(f"At threshold {point['threshold']:g}: {shares} ({point['name']}: {point['source']})")
    if not figures:
        say("No figures are published for it; dicom-node evaluate --adopt gives it this site's own.")


@group.command("list")
def list_(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the models that can be used, and which one is."""
    settings = settings_from(config)
    from inference.models.cards import read_card
    from inference.models.registry import find_model, list_models

    active = read_card(
        find_model(settings.models_dir, settings.model.name or None, settings.model.version or None)
    ).identity()
    rows = []
    for card in list_models(settings.models_dir):
        identity = card.identity()
        rows.append(
            {
                "name": identity.name,
                "version": identity.version,
                "profile": identity.profile,
                "verified": identity.verified,
                "demonstration": identity.demonstration,
                "digest": identity.digest,
                "active": identity.digest == active.digest,
            }
        )
    if json:
        print_json(rows)
    elif rows:
        print_rows("Models", list(rows[0]), (list(row.values()) for row in rows))

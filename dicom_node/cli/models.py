"""models import, publish, calibrate, suspend, resume, list, show and check."""

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.calibrate import calibrate
from dicom_node.cli.common import ConfigOption, JsonOption, database_of, out, print_json, print_rows, say, settings_from
from dicom_node.cli.suspend import resume, suspend
from dicom_node.errors import NodeError

group = typer.Typer(no_args_is_help=True, help="Import, publish, list and check models.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="models")


for command in (calibrate, suspend, resume):
    group.command()(command)


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

    from inference.models.kinds import kind_of_former_cards, plug_of
    from inference.plug import Imports
    from storage import audit

    plug = plug_of(kind_of_former_cards())
    if not isinstance(plug, Imports):
        raise NodeError("this kind of model has no files to import")
    files = {"unet": unet, "decovnet": decovnet}
    card = plug.import_files(files, settings.models_dir, allow_unverified=allow_unverified)
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
        return
    state = "verified" if identity.verified else "UNVERIFIED"
    out.print(f"imported {identity.name} {identity.version} ({state}), digest {identity.digest[:16]}", markup=False)
    if card.non_commercial:
        out.print(f"licence: {card.licence}", markup=False)


@group.command()
def publish(
    run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of train decovnet.")],
    name: Annotated[str, typer.Option(help=r"Name of the model, as \[model] name will give it.")],
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
        digests = {f"{role}_sha256": weights.sha256 for role, weights in card.weight_files().items()}
        print_json({**detail, **digests})
        return
    out.print(f"published {name} {version}, digest {card.digest()[:16]}", markup=False)
    if not activate:
        out.print(f'use it with [model] name = "{name}", version = "{version}"; or shadow = "{name}"', markup=False)


@group.command("list")
def list_(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the models that can be used, which of them are, and what their licences forbid."""
    settings = settings_from(config)
    from dicom_node.analysis.current_model import current_models
    from inference.models.registry import list_models

    used = {model.digest for model in current_models(settings).all}
    rows = []
    for card in list_models(settings.models_dir):
        identity = card.identity()
        rows.append(
            {
                "name": identity.name,
                "version": identity.version,
                "kind": card.kind,
                "profile": identity.profile,
                "verified": identity.verified,
                "demonstration": identity.demonstration,
                "non_commercial": card.non_commercial,
                "licence": card.licence,
                "digest": identity.digest,
                "active": identity.digest in used,
            }
        )
    if json:
        print_json(rows)
        return
    columns = ("name", "version", "kind", "verified", "active", "licence")
    print_rows("Models", columns, ([_cell(row[name]) for name in columns] for row in rows))
    for row in rows:
        if row["non_commercial"]:
            out.print(f"{row['name']} {row['version']}: NON-COMMERCIAL USE ONLY ({row['licence']})", markup=False)


def _cell(value: object) -> object:
    return ("yes" if value else "no") if isinstance(value, bool) else value


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a model.")]
VersionOption = Annotated[str | None, typer.Option(help="Its version, if several models have that name.")]


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
    from inference.models.toml_fields import plain

    wanted = (name, version) if name else (settings.model.name or None, settings.model.version or None)
    card = read_card(find_model(settings.models_dir, *wanted))
    figures = [vars(point) for point in figures_of(card, settings.models_dir)]
    facts = {
        key: getattr(card, key)
        for key in ("kind", "title", "source", "licence", "non_commercial", "intended_use", "threshold")
    }
    if json:
        record = {"name": card.name, "version": card.version, **facts, "digest": card.digest(), "figures": figures}
        print_json(record | {"weights": dict(card.identity().weights), "card": plain(card)})
        return
    say(f"{card.name} {card.version}")
    for key, value in {**facts, "digest": card.digest()}.items():
        say(f"  {key.replace('_', ' '):13} {value}")
    if card.non_commercial:
        say("NON-COMMERCIAL USE ONLY")
    for point in figures:
        shares = f"sensitivity {point['sensitivity']:.3f}, specificity {point['specificity']:.3f}"
        say(f"At threshold {point['threshold']:g}: {shares} ({point['name']}: {point['source']})")
    if not figures:
        say("No figures are published for it; dicom-node evaluate --adopt gives it this site's own.")


@group.command()
def check(
    name: NameArgument,
    version: VersionOption = None,
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda", "cuda:0", ...')] = "auto",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Check a model: card, weights, licence, a run on a phantom, and the report of that run. Exit 1 if one fails."""
    settings = settings_from(config)
    from dicom_node.analysis.model_check import check_model

    steps = check_model(settings, name, version, device)
    if json:
        print_json([vars(step) for step in steps])
    else:
        for step in steps:
            out.print(f"{'ok  ' if step.passed else 'FAIL'} {step.what}: {step.found}", markup=False, soft_wrap=True)
    if not all(step.passed for step in steps):
        raise typer.Exit(1)

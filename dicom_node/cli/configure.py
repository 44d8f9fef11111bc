"""config: check it, show it, begin one; and what a model's figures mean at a site's prevalence."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from config.example import example
from config.load import Mistake, read
from config.rules import S3_FILES, TLS_FILES, Broken, Location, Table, entries, is_this_machine, section
from config.settings import ENV_PREFIX, Settings
from dicom_node.analysis.figures import figures_of
from dicom_node.cli.common import ConfigOption, JsonOption, err, out, print_json, print_rows, settings_from
from dicom_node.errors import NodeError, NoIndex
from dicom_node.runtime.index import open_index
from dicom_node.runtime.supervisor import DO_NOT_RESTART
from inference.errors import InferenceError
from inference.evaluation.prevalence import ppv_npv
from inference.models.cards import read_card
from inference.models.registry import find_model
from storage import web_users
from storage.errors import DatabaseOutdated, StorageError

WEB_NEEDS = ("starlette", "uvicorn", "jinja2", "python_multipart", "argon2", "itsdangerous")
SSO_NEEDS = ("authlib", "joserfc", "httpx")
GATEWAY_NEEDS = ("httpx",)
group = typer.Typer(no_args_is_help=True, help="Check and show the configuration.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="config")


@group.command()
def check(
    config: ConfigOption = None,
    file: Annotated[Path | None, typer.Argument(help="The TOML file; the same as --config.")] = None,
) -> None:
    """Name every mistake in the configuration with its line, or its environment variable."""
    path = file or config
    settings, mistakes = read_and_check(path)
    mistakes += nobody_may_log_in(settings) if settings is not None else []
    for mistake in mistakes:
        where = "environment" if path is None or mistake.key.upper().startswith(ENV_PREFIX) else path
        err.print(f"{where}: {mistake}", markup=False, soft_wrap=True)
    if mistakes:
        raise typer.Exit(DO_NOT_RESTART)
    if settings is not None:
        for notice in licence_notices(settings):
            out.print(notice, markup=False, soft_wrap=True)
    out.print(f"{path or 'defaults and environment'}: no mistakes", soft_wrap=True)


def nobody_may_log_in(settings: Settings) -> list[Mistake]:
    """Pages that others reach are for people with an account: without one, they only invite guessing."""
    if not settings.web.port or is_this_machine(settings.web.host) or settings.web.oidc.issuer:
        return []
    try:
        with open_index(settings, create=False, upgrade=False).read() as tx:
            if web_users.everyone(tx):
                return []
    except (NoIndex, DatabaseOutdated):
        pass  # before the first start, or the first of a version with pages
    except StorageError:
        return []  # the index or the store is away; that is no mistake in the settings
    return [Mistake("web.host", None, "nobody may log in yet: dicom-node web user add NAME --role viewer")]


def licence_notices(settings: Settings) -> Iterator[str]:
    """What the licences of the configured models forbid."""
    from dicom_node.analysis.current_model import current_models

    for model in current_models(settings).all:
        card = read_card(find_model(settings.models_dir, model.name, model.version))
        if card.non_commercial:
            yield f"model {card.name} {card.version}: NON-COMMERCIAL USE ONLY ({card.licence})"


def read_and_check(path: Path | None) -> tuple[Settings | None, list[Mistake]]:
    """The settings, or None, and every mistake, files and models that are not there among them."""
    return read(path, _CHECKS)


def _models_are_there(values: Table) -> Iterator[Broken]:
    """The models that [model] names can be found."""
    models_dir = Path(str(values.get("data_dir", Settings.model_fields["data_dir"].default))) / "models"
    model = section(values, "model")
    for name_key, version_key in (("name", "version"), ("shadow", "shadow_version")):
        name, version = model.get(name_key), model.get(version_key)
        if isinstance(name, str) and name and isinstance(version, str | None):
            try:
                find_model(models_dir, name, version or None)
            except InferenceError as error:
                yield Broken(("model", name_key), str(error))


def _several_are_there(values: Table) -> Iterator[Broken]:
    """The models that [[models]] names can be found."""
    models_dir = Path(str(values.get("data_dir", Settings.model_fields["data_dir"].default))) / "models"
    for index, entry in entries(values, "models"):
        name, version = entry.get("name"), entry.get("version")
        if isinstance(name, str) and name and isinstance(version, str | None):
            try:
                find_model(models_dir, name, version or None)
            except InferenceError as error:
                yield Broken(("models", index, "name"), str(error))


def _pages_are_installed(values: Table) -> Iterator[Broken]:
    missing = next((name for name in WEB_NEEDS if find_spec(name) is None), None)
    if section(values, "web").get("port") and missing:
        yield Broken(("web", "port"), f"the pages need {missing}: pip install 'dicom-node[web]'")


def _provider_is_within_reach(values: Table) -> Iterator[Broken]:
    """What logins by an identity provider need on this machine: libraries and files."""
    oidc, where = section(section(values, "web"), "oidc"), ("web", "oidc")
    missing = next((name for name in SSO_NEEDS if find_spec(name) is None), None)
    if oidc.get("issuer") and missing:
        yield Broken((*where, "issuer"), f"the identity provider needs {missing}: pip install 'dicom-node[sso]'")
    yield from _unreadable(where, oidc, ("credentials", "authorities"))
    yield from _unreadable(("web", "dicomweb"), section(section(values, "web"), "dicomweb"), ("credentials",))


def _gateways_are_installed(values: Table) -> Iterator[Broken]:
    """What destinations and webhooks need that are reached by HTTP."""
    missing = next((name for name in GATEWAY_NEEDS if find_spec(name) is None), None)
    for index, item in entries(values, "destinations"):
        if item.get("url") and missing:
            needs = f"it needs {missing}: pip install 'dicom-node[gateways]'"
            yield Broken(("destinations", index, "kind"), needs)
    for index, item in entries(values, "notifications"):
        if item.get("webhook") and missing:
            yield Broken(("notifications", index, "webhook"), f"it needs {missing}: pip install 'dicom-node[gateways]'")


def _cluster_is_installed(values: Table) -> Iterator[Broken]:
    cluster, where = section(values, "cluster"), ("cluster",)
    if cluster.get("address") and find_spec("ray") is None:
        yield Broken((*where, "address"), "the cluster needs ray: pip install 'dicom-node[ray]'")
    yield from _unreadable(where, cluster, ("credentials", *TLS_FILES))


def _files_are_there(values: Table) -> Iterator[Broken]:
    """The certificates, keys and credentials that the settings name can be read."""
    tables: list[tuple[Location, Table]] = [((name,), section(values, name)) for name in ("receiver", "web")]
    tables += [(("destinations", index), entry) for index, entry in entries(values, "destinations")]
    tables += [
        ((array, index), entry) for array in ("notifications", "worklists") for index, entry in entries(values, array)
    ]
    tables += [(path, section(section(values, path[0]), path[1])) for path in (("storage", "s3"), ("audit", "syslog"))]
    tables.append((("mail",), section(values, "mail")))
    for location, table in tables:
        yield from _unreadable(location, table, (*TLS_FILES, *S3_FILES, "key"))


_CHECKS = (
    _models_are_there,
    _several_are_there,
    _files_are_there,
    _pages_are_installed,
    _provider_is_within_reach,
    _gateways_are_installed,
    _cluster_is_installed,
)


def _unreadable(location: Location, table: Table, keys: Iterable[str]) -> Iterator[Broken]:
    for key in keys:
        name = table.get(key)
        if isinstance(name, str) and name:
            try:
                with Path(name).open("rb") as file:
                    content = file.read(LARGEST_PEM)
            except OSError as error:
                yield Broken((*location, key), f"{name} cannot be read: {error.strerror}")
                continue
            if key in PEM and not PEM[key](content):
                what = "private key without a password" if key == "tls_key" else "certificate"
                yield Broken((*location, key), f"{name} holds no {what} in PEM form")
    variable = table.get("credentials_variable")
    if isinstance(variable, str) and variable and not os.environ.get(variable):
        yield Broken((*location, "credentials_variable"), f"the environment variable {variable} is not set here")


def _has_certificates(content: bytes) -> bool:
    try:
        return bool(x509.load_pem_x509_certificates(content))
    except ValueError:
        return False


def _has_key(content: bytes) -> bool:
    try:
        return bool(serialization.load_pem_private_key(content, None))
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        return False


LARGEST_PEM = 16 << 20
PEM: Mapping[str, Callable[[bytes], bool]] = {
    "tls_certificate": _has_certificates,
    "tls_authorities": _has_certificates,
    "authorities": _has_certificates,
    "tls_key": _has_key,
}


@group.command()
def show(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show every setting as the node would use it."""
    values = settings_from(config).model_dump(mode="json")
    if json:
        print_json(values)
        return
    for name, content in values.items():
        if isinstance(content, dict):
            for key, value in content.items():
                out.print(f"{name}.{key} = {value!r}", markup=False)
        else:
            out.print(f"{name} = {content!r}", markup=False)


@group.command("example")
def example_file() -> None:
    """Print the annotated example: every setting with what it does and its default. To begin with: > node.toml."""
    print(example(), end="")


@group.command("predictive-values")
def predictive_values(
    prevalence: Annotated[float | None, typer.Option(min=0, max=1, help=r"Default: \[report] prevalence.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """PPV and NPV at a site's prevalence of the disease: of the site's own evaluation, or of the published points."""
    settings = settings_from(config)
    share = settings.report.prevalence if prevalence is None else prevalence
    if share is None:
        raise NodeError("give --prevalence, or set [report] prevalence: predictive values depend on it")
    card = read_card(find_model(settings.models_dir, settings.model.name or None, settings.model.version or None))
    rows = []
    for point in figures_of(card, settings.models_dir):
        values = ppv_npv(point.sensitivity, point.specificity, share)
        rows.append({**vars(point), "prevalence": share, "ppv": values.ppv, "npv": values.npv})
    if json:
        print_json(rows)
    elif rows:
        columns = ("name", "threshold", "sensitivity", "specificity", "prevalence", "ppv", "npv")
        print_rows(f"{card.name} {card.version}", columns, ([_rounded(row[c]) for c in columns] for row in rows))
    else:
        out.print(f"the card of {card.name} {card.version} publishes no operating points")


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value

"""One TOML file and the environment, and what the user is told about mistakes."""

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Secret, SecretStr
from typer.testing import CliRunner

from config.errors import ConfigError
from config.example import example
from config.load import load_settings, read
from config.settings import DESTINATION_KINDS, Settings, StorageSettings
from config.values import DatabaseUrl
from dicom_node.cli.app import app
from dicom_node.cli.configure import read_and_check
from dicom_node.receiver.certificates import Authority

EXAMPLE = Path(__file__).resolve().parents[2] / "config" / "node.toml"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that a developer has set do not count here."""
    for name in os.environ:
        if name.startswith("DICOM_NODE_"):
            monkeypatch.delenv(name)


def mistakes_in(folder: Path, text: str) -> list[tuple[str, int | None]]:
    """Key and line of every mistake in a file, in the order in which they are told."""
    file = folder / "node.toml"
    file.write_text(text)
    return [(mistake.key, mistake.line) for mistake in read(file)[1]]


RS = '[[rs_worklists]]\nname = "ris"\nserver = "no"\n'
WORKLIST = '[[worklists]]\nname = "ris"\nae_title = "A"\nhost = "h"\nport = 104\n'
PACS = '[[destinations]]\nname = "pacs"\nae_title = "A"\nhost = "h"\nport = 104\n'


def test_no_file_gives_loopback_and_thirty_seconds_of_quiet() -> None:
    settings = load_settings(None)
    assert (settings.receiver.host, settings.completion.quiet_s) == ("127.0.0.1", 30.0)
    assert not settings.model.allow_demonstration_model


def test_the_annotated_example_is_valid_and_changes_nothing() -> None:
    assert load_settings(EXAMPLE).model_dump() == load_settings(None).model_dump()


def test_the_annotated_example_is_the_one_that_the_settings_give() -> None:
    assert EXAMPLE.read_text() == example(), "run `python -m config.example > config/node.toml`"
    assert CliRunner().invoke(app, ["config", "example"]).output == example()


def test_every_setting_stands_in_the_annotated_example_with_its_default() -> None:
    settings = re.sub(r"^# (?=[a-z\[])", "", EXAMPLE.read_text().partition("\n\n")[2], flags=re.MULTILINE)
    uncommented = tomllib.loads(settings)
    arrays = ("sources", "models", "worklists", "rs_worklists", "notifications")
    for array in arrays:
        entry = Settings.model_fields[array].annotation.__args__[0]  # type: ignore[union-attr]
        assert set(uncommented.pop(array)[0]) == set(entry.model_fields)
    destinations = {one["kind"]: set(one) for one in uncommented.pop("destinations")}
    assert destinations == {kind: set(entry.model_fields) for kind, entry in DESTINATION_KINDS.items()}
    defaults = plain(load_settings(None).model_dump(exclude={"destinations", *arrays}))
    assert without_none(uncommented, defaults) == without_none(defaults, defaults)


def without_none(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The values whose default can be written in TOML, table by table."""
    return {
        key: without_none(value, defaults[key]) if isinstance(value, dict) and value else value
        for key, value in values.items()
        if key not in defaults or defaults[key] is not None
    }


def plain(value: Any) -> Any:
    """A dumped value as TOML would give it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Secret | SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, Path) else value


def test_environment_wins_over_the_file_and_leaves_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "node.toml"
    file.write_text('data_dir = "a"\n[receiver]\nae_title = "AI"\nport = 104\n')
    monkeypatch.setenv("DICOM_NODE_RECEIVER__PORT", "2104")
    monkeypatch.setenv("DICOM_NODE_DATA_DIR", str(tmp_path))
    settings = load_settings(file)
    assert (settings.receiver.ae_title, settings.receiver.port, settings.data_dir) == ("AI", 2104, tmp_path)


def test_every_mistake_is_named_with_its_key_and_line(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        '[receiver]\nport = 99999\nprot = 1\n\n[[destinations]]\nname = "pacs"\n'
        'ae_title = "A"\nhost = "h"\nport = 104\n'
        '[[destinations]]\nname = "other"\nae_title = "SEVENTEEN_LETTERS"\nhost = "h"\nport = 104\n'
    )
    _, mistakes = read(file)
    assert {(m.key, m.line) for m in mistakes} == {
        ("receiver.port", 2),
        ("receiver.prot", 3),
        ("destinations[1].ae_title", 12),
    }


def test_a_missing_key_points_to_its_table(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[completion]\nquiet_s = 3\n\n[[destinations]]\nname = "pacs"\nae_title = "A"\nhost = "h"\n')
    _, mistakes = read(file)
    assert [(m.key, m.line) for m in mistakes] == [("destinations[0].port", 4)]


def test_a_misspelt_variable_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_NODE_RECIEVER__PORT", "1")
    with pytest.raises(ConfigError, match="DICOM_NODE_RECIEVER__PORT"):
        load_settings(None)


def test_a_query_destination_must_exist(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[completion]\nquery_destination = "nowhere"\n')
    with pytest.raises(ConfigError, match="nowhere"):
        load_settings(file)


def test_settings_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        load_settings(None).receiver.port = 1  # type: ignore[misc]


def test_the_variables_that_the_node_sets_itself_are_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_NODE_LOG_KEY", "00")
    monkeypatch.setenv("DICOM_NODE_PARENT_PID", "1")
    assert load_settings(None).receiver.port == 11112


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[receiver]\nhost = "10.20.30.400"\n', [("receiver.host", 2)]),
        ('[receiver]\nhost = "10.20.30.4:104"\n', [("receiver.host", 2)]),
        ('[metrics]\nhost = "no host"\n', [("metrics.host", 2)]),
        (PACS.replace('"h"', '"-pacs"'), [("destinations[0].host", 4)]),
        ('[[sources]]\nae_title = "A"\naddresses = ["10.0.0.0/8", "10.0.0.0/40"]\n', [("sources[0].addresses[1]", 3)]),
        (PACS + PACS, [("destinations[1].name", 7)]),
        (WORKLIST, [("worklists[0].label", 1)]),
        (WORKLIST + 'label = "AI"\nfetch_from = "no"\n', [("worklists[0].fetch_from", 7)]),
        (RS + 'label = "AI"\n', [("rs_worklists[0].server", 3)]),
        (
            WORKLIST + 'label = "AI"\n' + RS + 'label = "AI"\n',
            [("rs_worklists[0].name", 8), ("rs_worklists[0].server", 9)],
        ),
        (WORKLIST + 'codes = ["110004"]\n', [("worklists[0].codes[0]", 6)]),
        ('[[sources]]\nae_title = "A"\n[[sources]]\nae_title = "A "\n', [("sources[1].ae_title", 4)]),
        (PACS + '[[sources]]\nae_title = "A"\ndestinations = ["pacs", "no"]\n', [("sources[0].destinations[1]", 8)]),
        ('[completion]\nquery_destination = "no"\n', [("completion.query_destination", 2)]),
        ('[storage]\ndatabase_url = "mysql://h/x"\n', [("storage.database_url", 2)]),
        ('[storage]\ndatabase_url = "/data/node.db"\n', [("storage.database_url", 2)]),
        ('[storage]\ndatabase_url = "postgresql+nobody://h/x"\n', [("storage.database_url", 2)]),
        ('[storage]\ndatabase_url = "postgresql://h:port/x"\n', [("storage.database_url", 2)]),
        ('[storage]\ndatabase_url = "sqlite://"\n', [("storage.database_url", 2)]),
        ('[worker]\ndevices = ["auto", "gpu"]\n', [("worker.devices[1]", 2)]),
        ('[receiver]\ntls_key = "k"\n', [("receiver.tls_key", 2)]),
        ("[receiver]\nplain = false\n", [("receiver.plain", 2)]),
        ('[receiver]\nusers = { a = "b" }\n', [("receiver.users", 2)]),
        ("[receiver]\nport = 104\n[metrics]\nport = 104\n", [("metrics.port", 4)]),
        (PACS + 'tls_key = "k"\n', [("destinations[0].tls_key", 6)]),
    ],
)
def test_each_kind_of_mistake_is_named_on_its_line(
    tmp_path: Path, text: str, expected: list[tuple[str, int | None]]
) -> None:
    assert mistakes_in(tmp_path, text) == expected


def test_mistakes_are_told_together_and_in_order_of_their_lines(tmp_path: Path) -> None:
    found = mistakes_in(
        tmp_path,
        f'[model]\nnmae = "x"\n[receiver]\nport = "a"\n{PACS}{PACS}'
        '[completion]\nquery_destination = "no"\nquiet_s = 0\n',
    )
    assert found == [
        ("model.nmae", 2),
        ("receiver.port", 4),
        ("destinations[1].name", 11),
        ("completion.query_destination", 16),
        ("completion.quiet_s", 17),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('# [receiver]\n[receiver] # here\n"port" = -1\n', 3),
        ('[receiver]\nae_title = "A#"\n\n  port=-1 # no\n', 4),
        ("receiver.port = -1\n", 1),
        ("\nreceiver = { plain = true, port = -1 }\n", 2),
        ('[report]\ninstitution = """\n[receiver]\nport = 1\n"""\n[receiver]\nport = -1\n', 7),
        ('[worker]\ndevices = [\n  "cpu", # [\n]\n[receiver]\nport = -1\n', 6),
    ],
)
def test_the_line_is_found_however_the_file_is_written(tmp_path: Path, text: str, line: int) -> None:
    assert mistakes_in(tmp_path, text) == [("receiver.port", line)]


def test_a_table_inside_an_array_of_tables_has_its_own_lines(tmp_path: Path) -> None:
    text = '[[sources]]\nae_title = "A"\n[[sources]]\nae_title = "B"\n[sources.series]\nbody_parts = 3\n'
    assert mistakes_in(tmp_path, text) == [("sources[1].series.body_parts", 6)]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DICOM_NODE_RECEIVER__PORT", "many", "integer"),
        ("DICOM_NODE_RECEIVER__PROT", "1", "not a known key"),
        ("DICOM_NODE_RECEIVER", '{"port": -1}', "receiver.port: "),
        ("DICOM_NODE_RECEIVER", "{", "JSON"),
        ("DICOM_NODE_WORKER__DEVICES", "cpu", "JSON"),
        ("DICOM_NODE_DATA_DIR__X", "1", "not a setting"),
        (
            "DICOM_NODE_DESTINATIONS",
            '[{"name": "p", "ae_title": "A", "host": "h"}]',
            "destinations[0].port: is missing",
        ),
        ("DICOM_NODE_COMPLETION__QUERY_DESTINATION", "no", "not the name of a destination"),
    ],
)
def test_a_mistake_in_a_variable_names_the_variable_and_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[receiver]\nport = 104\n[completion]\nquery_destination = ""\n')
    monkeypatch.setenv(name, value)
    _, (mistake,) = read(file)
    assert (mistake.key, mistake.line) == (name, None)
    assert says in mistake.message


def test_variables_do_not_hide_the_files_own_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_NODE_RECEIVER__PORT", "many")
    monkeypatch.setenv("DICOM_NODE_WORKER__DEVICES", "cpu")
    text = "[receiver]\nprocesses = 0\n[[destinations]]\nport = 104\n"
    assert mistakes_in(tmp_path, text)[-2:] == [
        ("DICOM_NODE_RECEIVER__PORT", None),
        ("DICOM_NODE_WORKER__DEVICES", None),
    ]
    assert [line for _, line in mistakes_in(tmp_path, text)] == [2, 3, 3, 3, None, None]


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("[receiver]\nport = 104\n", 0, "no mistakes"),
        ("[receiver]\nport = -1\n", 78, "line 2: receiver.port"),
        ('[model]\nname = "nobody"\n', 78, "line 2: model.name: no model nobody"),
        ('[model]\nshadow = "nobody"\n[receiver]\nport = -1\n', 78, "line 2: model.shadow: no model nobody"),
        ('[receiver]\ntls_key = "/nowhere/key"\n', 78, "/nowhere/key cannot be read"),
        (
            '[storage]\nbucket = "ct-images"\n[storage.s3]\ncredentials = "/nowhere/s3"\n',
            78,
            "/nowhere/s3 cannot be read",
        ),
        ("[receiver\n", 78, "not valid TOML"),
    ],
)
def test_config_check_tells_right_from_wrong_by_its_exit_status(
    tmp_path: Path, text: str, status: int, says: str
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    done = CliRunner().invoke(app, ["config", "check", str(file)])
    assert done.exit_code == status
    assert says in done.output


SECRET = "tr0ub4dor-and-3"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql+psycopg://node:{SECRET}@db/index", "postgresql+psycopg://node:***@db/index"),
        (f"postgresql://node:a@{SECRET}@db:5432/index", "postgresql://node:***@db:5432/index"),
        (f"postgresql://node:a/{SECRET}@db/index", "postgresql://node:***@db/index"),
        (f"postgresql://db/index?user=a&password={SECRET}", "postgresql://db/index?user=a&password=***"),
        ("sqlite:////data/node.db", "sqlite:////data/node.db"),
        ("postgresql://node@db/index", "postgresql://node@db/index"),
    ],
)
def test_a_database_url_is_shown_without_its_password(url: str, shown: str) -> None:
    settings = StorageSettings(database_url=url)
    assert settings.database_url.get_secret_value() == url
    assert str(settings.database_url) == shown
    assert settings.model_dump(mode="json")["database_url"] == shown
    assert SECRET not in repr(settings)


def test_no_secret_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    authority = Authority("authority", time.time())
    authorities, (certificate, key) = authority.write(tmp_path / "ca.pem"), authority.issue(tmp_path, "node")
    file.write_text(
        f'[storage]\npseudonym_key = "{SECRET}{SECRET}"\ndatabase_url = "postgresql://n:{SECRET}@db/i"\n'
        f'[receiver]\nplain = false\nusers = {{ pacs = "{SECRET}" }}\n'
        f'tls_certificate = "{certificate}"\ntls_key = "{key}"\ntls_authorities = "{authorities}"\n'
    )
    for command in (["config", "show"], ["config", "show", "--json"], ["config", "check"]):
        done = CliRunner().invoke(app, [*command, "--config", str(file)])
        assert done.exit_code == 0, done.output
        assert SECRET not in done.output
    assert SECRET not in repr(load_settings(file))


def test_a_mistake_in_a_secret_does_not_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "node.toml"
    file.write_text(f'[storage]\npseudonym_key = "{SECRET}"\ndatabase_url = "mysql://n:{SECRET}@db/i"\n')
    monkeypatch.setenv("DICOM_NODE_RECEIVER__USERS", f"pacs={SECRET}")
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert len(str(caught.value).splitlines()) == 4
    assert SECRET not in str(caught.value)


def test_whatever_is_named_like_a_secret_is_one_by_its_type() -> None:
    def check(section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            inner = [a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(a, type)]
            if re.search(r"passw|passcode|secret|token|(^|_)key$|users|_url$", name) and "tls" not in name:
                assert any(issubclass(a, Secret | SecretStr) for a in inner), f"{section.__name__}.{name}"
            for kind in inner:
                if issubclass(kind, BaseModel):
                    check(kind)

    check(Settings)


def test_an_url_that_is_no_database_is_refused_when_given_directly() -> None:
    with pytest.raises(ValueError, match="database URL"):
        StorageSettings(database_url=DatabaseUrl("http://h"))


def test_a_node_whose_model_is_not_there_ends_as_wrongly_configured(tmp_path: Path) -> None:
    variables = {**os.environ, "DICOM_NODE_DATA_DIR": str(tmp_path), "DICOM_NODE_MODEL__NAME": "nobody"}
    command = [sys.executable, "-m", "dicom_node", "run"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 78
    assert "no model nobody" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[recevier]\nport = 104\n", "did you mean receiver?"),
        ("[receiver]\nae_titel = 1\n", "did you mean ae_title?"),
        ("[[destinations]]\nname = 1\n", "must be text in quotes"),
        ('[sources]\nae_title = "A"\n', "must be a list"),
        ("[sender.commitment]\nprot = 104\n", "did you mean port?"),
        ("receiver = 104\n", "must be a table"),
    ],
)
def test_a_mistake_is_told_in_the_words_of_the_file(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    assert any(says in mistake.message for mistake in read(file)[1])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"models": [{"name": "a"}], "model": {"name": "b"}}, r"\[\[models\]\] names the models"),
        ({"models": [{"name": "a"}, {"name": "a"}]}, "a model analyses a series once"),
        ({"models": [{"name": "a", "shadow": True}]}, "one model at least must report"),
        (
            {"models": [{"name": "a"}, {"name": "b", "shadow": True}, {"name": "c", "shadow": True}]},
            "one model at most",
        ),
        ({"models": [{"name": "a", "sources": ["CT"]}]}, "'CT' is not the AE title of a source"),
        ({"models": [{"name": "a"}, {"name": "b", "series_numbers": 9005}]}, "leave 10 between"),
    ],
)
def test_models_that_contradict_each_other_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        Settings(**values)


def test_series_numbers_of_models_never_meet():
    settings = Settings(models=[{"name": "a"}, {"name": "s", "shadow": True}, {"name": "b"}, {"name": "c"}])
    assert [settings.series_numbers(name) for name in "abc"] == [9000, 9010, 9020]
    assert settings.series_numbers("no longer listed") == 9040, "after the shadow too"
    assert Settings(model={"name": "a"}).series_numbers("a") == Settings().series_numbers("demonstration") == 9000


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({}, []),
        ({"issuer": "http://127.0.0.1:8080"}, []),
        ({"issuer": "http://login.example"}, ["web.oidc.issuer"]),
        ({"issuer": "https://login.example?x"}, ["web.oidc.issuer"]),
        ({"address": "http://node.example"}, ["web.oidc.address"]),
        ({"address": "https://node.example/pages"}, ["web.oidc.address"]),
        ({"address": ""}, ["web.oidc.address"]),
        ({"client_id": ""}, ["web.oidc.client_id"]),
        ({"credentials": "/nowhere"}, ["web.oidc.credentials"]),
    ],
)
def test_an_identity_provider_is_asked_over_private_lines_only(tmp_path, given, wrong):
    values = {"issuer": "https://login.example/realms/a", "address": "https://node.example:8443/", "client_id": "node"}
    lines = [f'{key} = "{value}"' for key, value in (values | given).items()]
    (tmp_path / "node.toml").write_text("\n".join(["[web.oidc]", *lines, 'roles = { "a" = "viewer" }']))
    assert [mistake.key for mistake in read_and_check(tmp_path / "node.toml")[1]] == wrong


def test_a_bucket_beyond_this_machine_may_be_plain_by_a_variable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_NODE_STORAGE__BUCKET", "s3://images")
    monkeypatch.setenv("DICOM_NODE_STORAGE__S3__ENDPOINT", "http://10.0.0.1:9000")
    with pytest.raises(ConfigError, match="plain = true"):
        load_settings(None)
    monkeypatch.setenv("DICOM_NODE_STORAGE__S3__PLAIN", "true")
    assert load_settings(None).storage.s3.plain

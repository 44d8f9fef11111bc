"""One TOML file and the environment, and what the user is told about mistakes."""

from pathlib import Path

import pytest

from config.errors import ConfigError
from config.load import load_settings, read

ROOT = Path(__file__).resolve().parents[2]


def test_no_file_gives_loopback_and_thirty_seconds_of_quiet() -> None:
    settings = load_settings(None)
    assert (settings.receiver.host, settings.completion.quiet_s) == ("127.0.0.1", 30.0)
    assert not settings.model.allow_demonstration_model


def test_the_annotated_example_is_valid_and_changes_nothing() -> None:
    assert load_settings(ROOT / "config" / "node.toml").model_dump() == load_settings(None).model_dump()


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

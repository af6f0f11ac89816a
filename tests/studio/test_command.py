"""The command line of the page: what it refuses, and that it answers where it says."""

import socket

import pytest

from dash_vision.studio.command import PASSWORD, main
from tests.support.processes import free_port


@pytest.mark.parametrize(
    ("words", "password", "sentence"),
    [
        (["--port", "0"], None, "--port is 0; it takes a number from 1 to 65535"),
        (["--listen", "0.0.0.0"], None, f"put one into the variable {PASSWORD}"),
        (["--listen", "0.0.0.0"], "short", "has 5 characters; give at least 8"),
        ([], "short", "has 5 characters; give at least 8"),
        (["--bases", "absent"], None, "there is no folder --bases "),
        (["--runs", "file"], None, "cannot make --runs "),
    ],
)
def test_what_cannot_be_served_is_one_sentence(words, password, sentence, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.delenv(PASSWORD, raising=False)
    if password:
        monkeypatch.setenv(PASSWORD, password)
    assert main([*words, "--no_browser"]) == 2
    errors = capfd.readouterr().err
    assert sentence in errors
    assert errors.count("\n") == 1


def test_a_port_that_is_taken_is_one_sentence(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert main(["--port", str(port), "--no_browser"]) == 2
    errors = capfd.readouterr().err
    assert f"cannot answer at 127.0.0.1, port {port}" in errors
    assert errors.count("\n") == 1


def test_flags_are_written_with_hyphens_too(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["--no-browser", "--port", "0"]) == 2
    assert "--port is 0" in capfd.readouterr().err


def test_without_its_libraries_the_page_says_how_to_get_them(monkeypatch, capfd):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    assert main([]) == 2
    assert "the page needs uvicorn: pip install 'dash-vision[studio]'" in capfd.readouterr().err

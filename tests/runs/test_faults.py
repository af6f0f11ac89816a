"""The end of a command that did not go well: a sentence, a file to attach, and streams that never end a run."""

import io
import os
import sys

import pytest

import dash_vision.__main__
import train_vtab
from dash_vision.diffusion import command
from dash_vision.runs import faults
from tests.support.processes import Process
from tests.support.scripts import dreambooth, vtab

TOKEN = "hf_" + "q" * 24


def fault(*_, **__):
    raise KeyError(f"no such thing {TOKEN}")


def report_in(folder):
    (file,) = folder.glob("dash-vision-fault-*.txt")
    return file, file.read_text(encoding="utf-8")


def test_a_fault_of_our_own_leaves_a_file_to_attach_and_a_sentence(bases, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dash_vision.diffusion.setup.make_plan", fault)
    out = tmp_path / "out"
    assert dreambooth(bases, out, "--seed", "7") == 1
    file, text = report_in(out)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "this is a fault of dash-vision itself (KeyError" in said
    assert str(file) in said
    assert "Traceback" in text
    assert "--seed 7" in text
    assert "torch 2." in text
    assert TOKEN not in said + text


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token", "secret-of-mine"],
        ["--hub_token=secret-of-mine"],
        ["--hub-token", "secret-of-mine"],
        ["--prompt", "hf_secretsecretsecret-of-mine"],
    ],
)
def test_tokens_are_hidden_wherever_they_stand_in_a_report(tmp_path, words):
    try:
        raise ValueError(f"the hub says no to {words[-1]} here")
    except ValueError as error:
        said = faults.report(error, tmp_path, ["--rank", "4", *words])
    _, text = report_in(tmp_path)
    assert "secret" not in said + text
    assert faults.HIDDEN in text
    assert "--rank 4" in text


def test_without_an_output_folder_the_file_is_in_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dash_vision.commands.adapters.describe", fault)
    assert dash_vision.__main__.main(["inspect", "x.safetensors"]) == 1
    report_in(tmp_path)
    assert "fault of dash-vision itself" in capsys.readouterr().err


def test_vtab_reports_its_faults_too(bases, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dash_vision.classification.sweep.runtime_of", fault)
    (tmp_path / "out").mkdir()
    assert vtab(bases, tmp_path / "out") == 1
    report_in(tmp_path / "out")
    assert "fault of dash-vision itself" in capsys.readouterr().err


def test_under_accelerate_launch_an_error_names_the_command_that_needs_no_launcher(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(sys, "argv", ["/somewhere/train_vtab.py"])
    assert train_vtab.main([]) == 2
    said = capsys.readouterr().err
    assert "--task is missing" in said
    assert "python train_vtab.py ..." in said
    assert said.count("\n") == 1


def test_a_tracker_sees_no_token_among_the_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_dreambooth.py", "--instance_data", "nowhere", "--hub_token", TOKEN])
    assert command.main() == 2
    assert sys.argv[1:] == ["--instance_data", "nowhere", "--hub_token", "HIDDEN"]


# -- streams


class Console(io.TextIOWrapper):
    """A console of an encoding, whose reader may go."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def shown(self):
        return self.buffer.getvalue().decode(self.encoding)


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError

    def fileno(self):
        return os.open(os.devnull, os.O_WRONLY)


def test_a_character_that_a_console_lacks_is_printed_as_its_code(monkeypatch):
    console = Console("cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    with faults.printable_streams():
        print("caf\u00e9 \u732b")
    assert console.shown() == "caf\u00e9 \\u732b\n"
    assert sys.stdout is console


def test_a_reader_that_has_gone_ends_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Gone())
    with faults.printable_streams():
        print("one", flush=True)
        print("two", flush=True)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_run_whose_words_a_console_lacks_ends_well(bases, tmp_path, encoding):
    more = ("--instance_prompt", "a photo of sks \u732b", "--checkpointing_steps", "0", "--max_train_steps", "3")
    done = Process(dreambooth, (bases, tmp_path / "out", *more), tmp_path, PYTHONIOENCODING=encoding)
    assert done.wait() == 0, done.stderr
    assert r"sks \u732b" in done.stdout

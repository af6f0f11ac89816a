"""The commands of `eval`: packages of one form, which answer --help before torch is there."""

import argparse
import subprocess
import sys

import pytest

from dash_vision.__main__ import main as dash_vision
from eval.__main__ import COMMANDS, main, make_parser
from tests.support.paths import ROOT

NAMES = [
    "checkpoints",
    "curves",
    "directions",
    "figure",
    "peft-benchmark",
    "report",
    "strength",
    "subject",
    "vtab",
]


def parsers():
    (action,) = [a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


def test_every_package_is_a_command():
    assert sorted(command.NAME for command in COMMANDS) == NAMES
    folders = (path.parent.name for path in (ROOT / "eval").glob("*/__init__.py"))
    assert sorted(name.replace("_", "-") for name in folders) == NAMES
    assert sorted(parsers()) == NAMES
    for command in COMMANDS:
        assert command.HELP
        assert command.run.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_its_output_by_o_and_describes_itself(name):
    parser = parsers()[name]
    assert any({"-o", "--out"} <= set(action.option_strings) for action in parser._actions)
    assert len(parser.description) > 60
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (main, []),
        (main, ["curve"]),
        (main, ["curves", "a"]),
        (dash_vision, ["genrate"]),
        (dash_vision, ["generate", "a", "--prompts"]),
    ],
)
def test_a_mistake_in_a_command_is_one_line(command, words, capsys):
    with pytest.raises(SystemExit) as stop:
        command(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ": error: " in said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (main, ["checkpoints", "absent", "--eval-encoders", "none"]),
        (dash_vision, ["generate", "absent", "--num-images", "2", "--prompts", "a cat"]),
    ],
)
def test_flags_are_written_with_hyphens_too(command, words, capsys):
    assert command(words) == 2
    assert "absent" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = f"""
import sys
from eval.__main__ import main
for name in {NAMES}:
    try:
        main([name, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
print("loaded:", [name for name in ("torch", "numpy", "PIL", "diffusers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr

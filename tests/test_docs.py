"""Every command and every flag that the documents name is one that the programs take."""

import argparse
import re
import runpy
import shlex
import sys

import pytest
from accelerate.commands.launch import launch_command_parser

import benchmarks.__main__
import benchmarks.checkpoints
import benchmarks.decompositions
import benchmarks.directions
import benchmarks.host
import benchmarks.individuals
import benchmarks.lineup
import benchmarks.pretrained
import benchmarks.published
import dash_vision.__main__
import dash_vision.miniature.__main__
import dash_vision.studio.command
import eval.__main__
import tests.soak.__main__
from dash_vision.classification.config import VtabConfig
from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.planning import PlanConfig
from dash_vision.runs.settings import make_parser, parse
from tests.support.paths import ROOT


def example_parser(name):
    sys.path.insert(0, str(ROOT / "examples"))  # where its neighbours are when it is run
    try:
        return runpy.run_path(str(ROOT / name))["make_parser"]()
    finally:
        sys.path.pop(0)


PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/RESULTS.md", *ROOT.glob("docs/*.md")])
TRAINERS = {
    "train_dreambooth.py": DreamBoothConfig,
    "train_vtab.py": VtabConfig,
    "dreambooth": DreamBoothConfig,
    "plan": PlanConfig,
    "vtab": VtabConfig,
}
MODULES = {
    "eval": eval.__main__.make_parser,
    "benchmarks": benchmarks.__main__.make_parser,
    "benchmarks.checkpoints": benchmarks.checkpoints.make_parser,
    "benchmarks.decompositions": benchmarks.decompositions.make_parser,
    "benchmarks.directions": benchmarks.directions.make_parser,
    "benchmarks.pretrained": benchmarks.pretrained.make_parser,
    "benchmarks.host": benchmarks.host.make_parser,
    "benchmarks.individuals": benchmarks.individuals.make_parser,
    "benchmarks.lineup": benchmarks.lineup.make_parser,
    "benchmarks.published": benchmarks.published.make_parser,
    "dash_vision.miniature": dash_vision.miniature.__main__.make_parser,
    "tests.soak": tests.soak.__main__.make_parser,
    "examples/commonsense.py": lambda: example_parser("examples/commonsense.py"),
    "examples/glue.py": lambda: example_parser("examples/glue.py"),
}
# Flags of programs that are not ours: of ruff, pip-audit, torchrun and pytest.
FOREIGN = {"--screenshots", "--check", "--skip-editable", "--nproc_per_node"}
LAUNCH = launch_command_parser()


def blocks(page):
    """The commands of a page's fenced blocks, with continued lines joined."""
    # With the language of each, so that the end of one block is not taken for the beginning of the next.
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines() if language in ("", "sh", "bash") else ():
            line = re.sub(r"\$\w+", "1", line)  # the variable of a loop
            yield from (part.strip() for part in re.split(" && |; do ", line) if part.strip())


def program(words):
    """(the launcher's words, the program's name, its arguments), or None where it is no program of ours."""
    if words[:2] == ["accelerate", "launch"]:
        names = [*TRAINERS, "eval", "dash_vision"]
        at = next((i for i, word in enumerate(words) if word in names), None)
        if at is None:
            return None
        module = words[at - 1] == "-m"
        return words[2 : at - module], words[at], words[at + 1 :]
    if words[0] == "dash-vision":
        return [], "dash_vision", words[1:]
    if words[0] in ("python", "python3"):
        module = words[1:2] == ["-m"]
        return [], words[1 + module], words[2 + module :]
    return None


def check(name, arguments):
    """Parse a whole command; pytest.raises is the caller's."""
    if name == "dash_vision" and arguments[:1] and arguments[0] in dash_vision.__main__.PROGRAMS:
        name, arguments = arguments[0], arguments[1:]
    if name in TRAINERS:
        if name.endswith("dreambooth.py") or name == "dreambooth":
            arguments = ["--instance_data", "somewhere", *arguments]
        parse(TRAINERS[name], "", "", arguments)
    elif name == "studio":
        dash_vision.studio.command.make_parser().parse_args(arguments)
    elif name == "dash_vision":
        dash_vision.__main__.make_parser().parse_args(arguments)
    elif name in MODULES:
        MODULES[name]().parse_args(arguments)
    else:
        assert name in ("venv", "tests.malformed", "demo"), name


COMMANDS = [(page.name, line) for page in PAGES for line in blocks(page)]
OURS = [(page, line) for page, line in COMMANDS if program(shlex.split(line, comments=True) or ["#"])]


@pytest.mark.parametrize(("page", "line"), OURS)
def test_a_command_of_the_documents_is_one_that_its_program_takes(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)  # the commands name files of the checkout
    launcher, name, arguments = program(shlex.split(line, comments=True))
    LAUNCH.parse_args([*launcher, "script.py"])
    check(name, arguments)


def test_the_documents_have_commands_of_every_program():
    named = {program(shlex.split(line, comments=True))[1] for _, line in OURS}
    assert named >= {"train_dreambooth.py", "train_vtab.py", "dash_vision", *MODULES} - {"tests.soak"}


def test_modules_named_in_a_sentence_exist():
    for page in PAGES:
        for module in re.findall(r"`[^`]*?python -m ([a-z_.]+)", page.read_text(encoding="utf-8")):
            assert module in {*MODULES, "dash_vision", "tests.malformed", "venv"}, f"{page.name}: {module}"


def known_flags():
    parsers = [make_parser(cls, "", "") for cls in (DreamBoothConfig, PlanConfig, VtabConfig)]
    parsers += [make() for make in MODULES.values()]
    parsers += [dash_vision.__main__.make_parser(), dash_vision.studio.command.make_parser(), LAUNCH]
    flags = set(FOREIGN)
    while parsers:
        for action in parsers.pop()._actions:
            flags |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return flags


def test_every_flag_of_the_documents_is_a_programs():
    known = known_flags()
    for page in PAGES:
        text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.S)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", text):
            assert flag in known, f"{page.name} names {flag}"

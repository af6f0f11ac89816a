"""An install from the wheel, without the checkout: the command, a training, pictures, an evaluation."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from setuptools.config.pyprojecttoml import read_configuration

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed package, and run(*words), the command `dash-vision` in an empty folder beside it."""
    root = tmp_path_factory.mktemp("wheel")
    source, target, work = root / "source", root / "site", root / "work"
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("dash_vision", "eval"):
        shutil.copytree(ROOT / name, source / name, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(root), str(source)], check=True, cwd=root
    )
    (wheel,) = root.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}

    def run(*words, program=(sys.executable, str(target / "bin/dash-vision"))):
        return subprocess.run(
            [*program, *map(str, words)], cwd=work, env=environment, text=True, capture_output=True, check=False
        )

    where = run("-c", "import dash_vision; print(dash_vision.__file__)", program=(sys.executable,))
    assert where.stdout.startswith(str(target)), where
    return work, run


def test_the_command_lists_its_subcommands(installed):
    _, run = installed
    shown = run("--help")
    assert shown.returncode == 0
    for name in ("demo", "dreambooth", "studio", "vtab", "generate", "eval", "export", "inspect", "merge", "predict"):
        assert name in shown.stdout
        assert run(name, "--help").returncode == 0
    wrong = run("dreambooth", "--instance_data", "absent")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("dash-vision dreambooth: error: ")
    assert wrong.stderr.count("\n") == 1


# Commands in one process, since each would import torch and diffusers for itself; how each ended, and what it said.
COMMANDS = """
import contextlib, io, json, sys
from dash_vision.__main__ import main

for words in json.loads(sys.argv[1]):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, out.getvalue(), errors.getvalue()]), file=sys.__stdout__)
"""


def test_the_demo_trains_draws_and_is_evaluated(installed):
    work, run = installed
    few = [
        "--max_train_steps",
        "2",
        "--prelaunch_steps",
        "1",
        "--num_inference_steps",
        "1",
        "--rank",
        "1",
        "--dash_k",
        "1",
    ]
    out = work / "dash-demo/out"
    commands = [
        ["demo", *few, "--validation_prompt", "a photo of sks cat"],
        ["demo", *few],
        ["generate", str(out), "--prompts", "a {} in the snow", "--num_inference_steps", "1"],
        ["eval", "curves", str(out), "-o", "curves.png"],
        ["eval", "report", str(out), "-o", "report.html"],
        ["inspect", str(out / "dash_adapter.safetensors")],
    ]
    done = run("-c", COMMANDS, json.dumps(commands), program=(sys.executable,))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [status for status, _, _ in answers] == [0, 2, 0, 0, 0, 0], answers
    assert {"dash_adapter.safetensors", "pytorch_lora_weights.safetensors", "run.json", "samples.png"} <= {
        path.name for path in out.iterdir()
    }
    _, again, drawn, _, _, inspected = answers
    assert "holds a finished run" in again[2]
    assert "a sks cat in the snow" in drawn[1]
    assert all((work / name).is_file() for name in ("generated/000-00.png", "curves.png", "report.html"))
    assert "step" in inspected[1]


def test_every_package_is_installed():
    settings = read_configuration(ROOT / "pyproject.toml", expand=False)["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "dash_vision").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    real = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    evaluation = {path.parent.relative_to(ROOT / "eval").parts for path in (ROOT / "eval").rglob("*.py")}
    real |= {".".join(("dash_vision", "evaluation", *parts)) for parts in evaluation}
    assert set(settings["packages"]) == real


def test_every_file_of_the_page_is_installed():
    patterns = read_configuration(ROOT / "pyproject.toml", expand=False)["tool"]["setuptools"]["package-data"]
    folder = ROOT / "dash_vision" / "studio"
    installed = {path for pattern in patterns["dash_vision.studio"] for path in folder.glob(pattern)}
    files = {path for name in ("templates", "static") for path in (folder / name).rglob("*") if path.is_file()}
    assert len(files) > 8
    assert files == installed

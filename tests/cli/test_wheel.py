"""An install from the wheel, without the checkout: the command, a training, pictures, an evaluation."""

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
    for name in ("demo", "dreambooth", "vtab", "generate", "eval", "export", "inspect", "merge", "predict"):
        assert name in shown.stdout
        assert run(name, "--help").returncode == 0
    wrong = run("dreambooth", "--instance_data", "absent")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("dash-vision dreambooth: error: ")
    assert wrong.stderr.count("\n") == 1


def test_the_demo_trains_draws_and_is_evaluated(installed):
    work, run = installed
    few = ("--max_train_steps", 2, "--prelaunch_steps", 1, "--num_inference_steps", 1, "--rank", 1, "--dash_k", 1)
    done = run("demo", *few, "--validation_prompt", "a photo of sks cat")
    assert done.returncode == 0, done.stderr
    out = work / "dash-demo/out"
    assert {"dash_adapter.safetensors", "pytorch_lora_weights.safetensors", "run.json", "samples.png"} <= {
        path.name for path in out.iterdir()
    }
    again = run("demo", *few)
    assert again.returncode == 2
    assert "holds a finished run" in again.stderr
    drawn = run("generate", out, "--prompts", "a {} in the snow", "--num_inference_steps", 1)
    assert drawn.returncode == 0, drawn.stderr
    assert "a sks cat in the snow" in drawn.stdout
    assert (work / "generated/000-00.png").is_file()
    curves = run("eval", "curves", out, "-o", "curves.png")
    assert curves.returncode == 0, curves.stderr
    report = run("eval", "report", out, "-o", "report.html")
    assert report.returncode == 0, report.stderr
    assert "step" in run("inspect", out / "dash_adapter.safetensors").stdout


def test_every_package_is_installed():
    settings = read_configuration(ROOT / "pyproject.toml", expand=False)["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "dash_vision").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    real = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    evaluation = {path.parent.relative_to(ROOT / "eval").parts for path in (ROOT / "eval").rglob("*.py")}
    real |= {".".join(("dash_vision", "evaluation", *parts)) for parts in evaluation}
    assert set(settings["packages"]) == real

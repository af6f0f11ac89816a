"""Settings of train_dreambooth.py: from files and the command line, and refused in one sentence."""

import os
import subprocess
import sys

import pytest

from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.files.errors import InputError
from dash_vision.runs.settings import parse
from tests.support.dreambooth import SCRIPT, prepare, settings
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--instance_data is missing"),
        (["--instance_data", "x", "--max_train_step", "5"], "did you mean --max_train_steps"),
        (["--instance_data", "x", "--rank", "two"], "argument --rank: it takes a whole number, got 'two'"),
        (["--instance_data", "x", "--rank", "-1"], "--rank is -1; it takes a number of 0 or more"),
        (["--instance_data", "x", "--rank", "0", "--dash_k", "0"], "--rank and --dash_k are both 0"),
        (["--instance_data", "x", "--learning_rate", "nan"], "--learning_rate is nan"),
        (["--instance_data", "x", "--lr_scheduler", "cosin"], "invalid choice: 'cosin'"),
        (
            ["--instance_data", "x", "--class_prompt", "a cat"],
            "does nothing without --with_prior_preservation",
        ),
        (["--instance_data", "x", "--config", "none.yaml"], "there is no settings file none.yaml"),
    ],
)
def test_wrong_settings_are_one_sentence_and_status_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as status:
        parse(DreamBoothConfig, "", "", arguments)
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_settings_come_from_files_and_the_command_line_wins(tmp_path):
    (tmp_path / "a.yaml").write_text("instance_data: x\nlearning_rate: 1e-4\ndash_k: 3\nrandom_flip: true\n")
    config = parse(DreamBoothConfig, "", "", ["--config", str(tmp_path / "a.yaml"), "--dash-k", "5"])
    assert (config.instance_data_dir, config.learning_rate, config.dash_k, config.random_flip) == ("x", 1e-4, 5, True)
    (tmp_path / "b.json").write_text('{"instance_data_dir": "y", "validation_prompt": ["a", "b"]}')
    config = parse(DreamBoothConfig, "", "", ["--config", str(tmp_path / "b.json"), "--center_crop"])
    assert (config.validation_prompt, config.center_crop) == (["a", "b"], True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instance_data: x\nranks: 3\n", "unknown setting ranks; did you mean rank"),
        ("instance_data: x\nrank: 3.5\n", "rank is 3.5; it takes a whole number"),
        ("instance_data: x\nrank: true\n", "it takes a whole number"),
        ("- 1\n- 2\n", "holds no settings"),
        ("a: [", "not valid YAML"),
        ("instance_data: x\noptimizer: sgd\n", "it takes adamw, prodigy"),
    ],
)
def test_bad_settings_files(tmp_path, text, words, capsys):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse(DreamBoothConfig, "", "", ["--config", str(tmp_path / "a.yaml")])
    assert words in capsys.readouterr().err


def test_pictures_are_looked_at_before_a_model_is_loaded(bases, tmp_path, monkeypatch):
    monkeypatch.setattr("dash_vision.diffusion.setup.load_base", lambda *a: pytest.fail("loaded a model"))
    with pytest.raises(InputError, match="no folder"):
        prepare(settings(bases, tmp_path / "out", instance_data_dir=str(tmp_path / "dgo"), instance_prompt="x"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 20}, "multiples of 8"),
        ({"lora_target": ["to_x"]}, "to_x"),
        ({"timestep_sampling": "shift"}, "--timestep_sampling does nothing for this base, which is trained by DDPM"),
        ({"optimizer": "prodigy"}, r"pip install 'dash-vision\[prodigy\]'"),
        ({"use_8bit_adam": True}, r"pip install 'dash-vision\[8bit\]'"),
    ],
)
def test_settings_that_do_not_fit_the_base(bases, tmp_path, changes, words, monkeypatch):
    for package in ("prodigyopt", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=words):
        prepare(settings(bases, tmp_path / "out", **changes))


def test_the_script_reports_in_one_sentence(tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "--instance_data",
        str(tmp_path / "nothing"),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert done.stderr.startswith("train_dreambooth.py: error: there is no folder")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["--instance_data", "x", "--rank", "two"], ["--rnk", "2"]])
def test_help_and_wrong_settings_wait_for_no_library(words):
    code = (
        "import sys\nfrom dash_vision.diffusion.command import main\n"
        f"try:\n    main({words})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'accelerate', 'PIL', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr

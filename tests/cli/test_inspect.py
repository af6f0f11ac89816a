"""python -m dash_vision inspect: where its output goes, and what a merge into few bits keeps."""

import os
import subprocess
import sys

import pytest

from dash_vision.__main__ import main
from tests.support.quantized import need
from tests.support.scripts import dreambooth


def test_a_reader_that_has_seen_enough_is_no_error(bases, tmp_path):
    assert dreambooth(bases, tmp_path / "out") == 0
    words = [sys.executable, "-m", "dash_vision", "inspect", str(tmp_path / "out" / "dash_adapter.safetensors")]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        ended = subprocess.run(words, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_merge_into_few_bits_is_judged_layer_by_layer(bases, tmp_path, capsys):
    need("int8")
    assert dreambooth(bases, tmp_path / "out", "--learning_rate", 1e-6) == 0
    file = str(tmp_path / "out" / "dash_adapter.safetensors")
    capsys.readouterr()
    assert main(["inspect", file, "--as", "int8"]) == 0
    said = capsys.readouterr().out.splitlines()
    layers = [line for line in said if line.startswith("  unet.")]
    assert all(line.rstrip("%").split()[-1].isdigit() for line in layers)
    assert f"less than half of the update survives in {len(layers)} of {len(layers)} layers" in said[-1]
    assert main(["inspect", file, "--as", "int8", "--base", str(bases / "sdxl")]) == 2
    assert "name the base of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--base", "somewhere"], "--base does nothing without --as"),
        (["--as", "int8", "--base", "/nowhere"], "there is no such folder"),
    ],
)
def test_flags_that_cannot_be_used_are_one_sentence_each(words, answer, saved, capsys):
    assert main(["inspect", str(saved[1]), *words]) == 2
    assert answer in capsys.readouterr().err

"""python -m dash_vision inspect and export, on a native adapter file."""

import re
import shutil

import pytest

from dash_vision import export_lora
from dash_vision.files.native import read_native


def test_inspect_prints_ranks_directions_and_base(saved, capsys):
    from dash_vision.__main__ import main

    adapter, path, _, _ = saved
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    chosen = " ".join(map(str, adapter.layers["0"].weights("default").indices.tolist()))
    assert chosen in out
    assert "rank 3, scaling 1.66667, dash_k 4" in out
    assert f"{adapter.layers['2'].weights('default').dsigma.abs().max():.3g}" in out
    assert "12 x 8" in out
    assert read_native(path)["model"].fingerprint in out


@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft"])
def test_export_command_equals_the_export_of_the_live_adapter(saved, to, tmp_path):
    from dash_vision.__main__ import main

    adapter, path, _, _ = saved
    assert main(["export", str(path), "--to", to, str(tmp_path / "a" / "x")]) == 0
    expected = export_lora(adapter, tmp_path / "b" / "x", format=to)
    assert (tmp_path / "a" / "x" / expected.name).read_bytes() == expected.read_bytes()


def test_a_run_folder_means_its_adapter(saved, tmp_path, capsys):
    from dash_vision.__main__ import main

    _, path, _, _ = saved
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(path, run / "dash_adapter.safetensors")
    assert main(["export", str(run), "--to", "peft", str(tmp_path / "a")]) == 0
    assert main(["export", str(path), "--to", "peft", str(tmp_path / "b")]) == 0
    written = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("a", "b")]
    assert written[0] == written[1]
    assert main(["inspect", str(run)]) == 0
    assert "rank 3" in capsys.readouterr().out


def test_export_says_what_a_lower_rank_and_half_precision_keep(saved, tmp_path, capsys):
    from dash_vision.__main__ import main

    _, path, _, _ = saved
    assert main(["export", str(path), "--to", "peft", "--rank", "2", "--dtype", "float16", str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"model: rank 2 keeps [\d.]+ % of the update's energy; least of (0|2|3\.0), [\d.]+ %", lines[1])
    assert re.fullmatch(r"float16 moves a layer's update by 0\.0\d+ % at most \((0|2|3\.0)\)", lines[2])
    assert main(["export", str(path), "--to", "peft", "--rank", "40", str(tmp_path / "b")]) == 0
    assert "model: rank 7 keeps all of the update's energy\n" in capsys.readouterr().out
    assert main(["export", str(path), "--to", "peft", "--rank", "0", str(tmp_path / "c")]) == 2
    assert "--rank is 0; it takes 1 or more" in capsys.readouterr().err


def test_export_takes_the_place_of_no_file_that_a_run_wrote(saved, tmp_path, capsys):
    from dash_vision.__main__ import main

    _, path, _, _ = saved
    run = tmp_path / "run"
    (run / "kohya").mkdir(parents=True)
    for name in ("run.json", "pytorch_lora_weights.safetensors", "kohya/run.safetensors"):
        (run / name).write_bytes(b"of the run")
    for folder, to in ((run, "diffusers"), (run / "kohya", "kohya")):
        assert main(["export", str(path), "--to", to, "--rank", "1", str(folder)]) == 2
        assert "holds the adapter that the run in" in capsys.readouterr().err
    for _ in range(2):  # a folder of the user's own in the run's
        assert main(["export", str(path), "--to", "diffusers", "--rank", "1", str(run / "small")]) == 0
    assert (run / "kohya/run.safetensors").read_bytes() == b"of the run"

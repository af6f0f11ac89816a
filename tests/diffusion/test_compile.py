"""DreamBooth with --compile."""

import functools
import json
import signal

import pytest
import torch
from safetensors.torch import load_file

import train_dreambooth


def compiled_run(bases, out, monkeypatch, *words, backend="eager"):
    """The exit status of a run by main(). backend: what stands in for inductor, which takes a minute to compile."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    common = {"instance_data_dir": bases / "cat", "output_dir": out, "pretrained_model_name_or_path": bases / "sd"}
    common |= {"rank": 2, "dash_k": 3, "max_train_steps": 6, "prelaunch_steps": 3, "learning_rate": 1e-2}
    common |= {"num_inference_steps": 2, "validation_prompt": "a photo of sks cat"}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        return train_dreambooth.main([*(w for k, v in common.items() for w in (f"--{k}", str(v))), *words])
    finally:
        signal.signal(signal.SIGTERM, terminate)


def test_compiling_changes_nothing_and_one_graph_lasts_through_both_phases(bases, tmp_path, monkeypatch):
    torch._dynamo.utils.counters.clear()
    assert compiled_run(bases, tmp_path / "plain", monkeypatch) == 0
    assert not torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    try:
        assert compiled_run(bases, tmp_path / "compiled", monkeypatch, "--compile") == 0
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]
    finally:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    plain, compiled = (json.loads((tmp_path / n / "run.json").read_text()) for n in ("plain", "compiled"))
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert compiled["launch"]["step"] == 3
    files = [load_file(tmp_path / n / "pytorch_lora_weights.safetensors") for n in ("plain", "compiled")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.allclose(value, files[1][key], atol=1e-4) for key, value in files[0].items())


def test_preserving_the_class_takes_one_more_graph(bases, tmp_path, monkeypatch):
    words = ("--preserve_class", "--max_train_steps", "5")
    assert compiled_run(bases, tmp_path / "plain", monkeypatch, *words) == 0
    try:
        assert compiled_run(bases, tmp_path / "compiled", monkeypatch, "--compile", *words) == 0
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
        assert not torch._dynamo.utils.counters["graph_break"]
    finally:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    plain, compiled = (json.loads((tmp_path / n / "run.json").read_text()) for n in ("plain", "compiled"))
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4)


def test_what_cannot_be_compiled_is_one_sentence(bases, tmp_path, monkeypatch, capsys):
    def broken(graph, inputs):
        raise OSError("no compiler\nhere")

    monkeypatch.setitem(torch._dynamo.backends.registry._COMPILER_FNS, "eager", broken)
    try:
        assert compiled_run(bases, tmp_path / "out", monkeypatch, "--compile") == 1
    finally:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    assert "torch.compile cannot compile the network here" in said[0]
    assert "no compiler" in said[0]
    assert "leave --compile out" in said[0]

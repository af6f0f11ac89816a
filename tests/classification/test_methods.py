"""What each method trains, PEFT methods among them."""

import json

import pytest
import torch

from dash_vision.classification.methods import prepare
from dash_vision.files.errors import InputError
from tests.support.vtab import PEFT_CONFIGS, one_run, tiny


def trained_names(tmp_path, **settings):
    tuned = prepare(one_run(tmp_path, **settings), tiny(), 5, 20)
    return tuned, set(tuned.trainable())


def test_linear_trains_the_head_without_stochastic_depth(tmp_path):
    tuned, names = trained_names(tmp_path, methods=["linear"])
    assert names == {"head.weight", "head.bias"}
    assert not any(type(m).__name__ == "DropPath" for m in tuned.model.modules())
    tuned, _ = trained_names(tmp_path, methods=["lora"])
    assert any(type(m).__name__ == "DropPath" for m in tuned.model.modules())


def test_full_trains_everything_and_bitfit_the_biases(tmp_path):
    tuned, names = trained_names(tmp_path, methods=["full"])
    everything = {name for name, _ in tuned.model.named_parameters()}
    assert names == everything
    _, names = trained_names(tmp_path, methods=["bitfit"])
    assert names == {n for n in everything if n.endswith("bias")} | {"head.weight"}


@pytest.mark.parametrize(("method", "k"), [("lora", 0), ("dash", 3)])
def test_adapters_train_r_times_the_sides_and_k_numbers_per_layer(tmp_path, method, k):
    tuned, names = trained_names(tmp_path, methods=[method])
    sides = [(192, 64), (64, 64), (192, 64), (64, 192)]  # qkv, proj, fc1, fc2 of each of 6 blocks
    expected = 6 * sum(2 * (out + in_) + k for out, in_ in sides)
    counts = tuned.counts()
    assert counts["trained_without_head"] == expected
    assert counts["trained"] == expected + 5 * 64 + 5
    assert {n for n in names if "head" in n} == {"head.weight", "head.bias"}


def test_dash_and_lora_of_one_seed_start_alike(tmp_path):
    dash, lora = (prepare(one_run(tmp_path, methods=[m]), tiny(), 5, 20) for m in ("dash", "lora"))
    for name, parameter in lora.trainable().items():
        assert torch.equal(parameter, dash.trainable()[name])


def test_singular_value_shifts_have_their_own_learning_rate(tmp_path):
    tuned, _ = trained_names(tmp_path)
    rest, shifts = tuned.groups(1e-3, 1e-2)
    assert (rest["lr"], shifts["lr"]) == (1e-3, 1e-2)
    assert all(p.ndim == 1 and len(p) == 3 for p in shifts["params"])
    assert sum(p.numel() for g in (rest, shifts) for p in g["params"]) == tuned.counts()["trained"]


def peft_file(tmp_path, name):
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(PEFT_CONFIGS[name]))
    return str(file)


@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_any_peft_method_trains_beside_the_head(tmp_path, name):
    run = one_run(tmp_path, methods=[], peft_config=[peft_file(tmp_path, name)])
    assert run.method == f"peft-{name}"
    tuned = prepare(run, tiny(), 5, 20)
    counts = tuned.counts()
    assert counts["trained"] - counts["trained_without_head"] == 5 * 64 + 5
    assert counts["trained_without_head"] > 0
    assert tuned.model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "no JSON file"),
        ("[1]", 'has no "peft_type"'),
        ('{"r": 8}', 'has no "peft_type"'),
        ('{"peft_type": "NONSENSE"}', "PEFT does not take"),
        ('{"peft_type": "LORA", "rank": 8}', "PEFT does not take"),
        ('{"peft_type": "LORA", "target_modules": ["to_q"]}', "PEFT does not take"),
        ('{"peft_type": "POLY", "target_modules": ["qkv"]}', "PEFT does not take .*task_ids"),
    ],
)
def test_peft_configurations_that_cannot_be_used_are_explained(tmp_path, content, sentence):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InputError, match=sentence):
        prepare(one_run(tmp_path, methods=[], peft_config=[str(tmp_path / "bad.json")]), tiny(), 5, 20)
    with pytest.raises(InputError, match="there is no PEFT configuration"):
        prepare(one_run(tmp_path, methods=[], peft_config=[str(tmp_path / "absent.json")]), tiny(), 5, 20)


def test_a_peft_method_whose_package_is_missing_is_explained(tmp_path, monkeypatch):
    def missing(*arguments):
        raise ImportError("scikit-learn is required for AdaMSS. Please install it with: pip install scikit-learn")

    monkeypatch.setattr("peft.get_peft_model", missing)
    run = one_run(tmp_path, methods=[], peft_config=[peft_file(tmp_path, "dora")])
    with pytest.raises(InputError, match=r"PEFT does not take .*pip install scikit-learn"):
        prepare(run, tiny(), 5, 20)


def test_a_target_that_matches_nothing_is_explained(tmp_path):
    with pytest.raises(InputError, match=r"--lora_target to_q: .*matches no layer"):
        prepare(one_run(tmp_path, lora_target=["to_q"]), tiny(), 5, 20)

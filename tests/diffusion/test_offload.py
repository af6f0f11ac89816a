"""DreamBooth runs with --offload: what waits where, and nothing else, is another."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from dash_vision.__main__ import main
from dash_vision.bases import sampling
from dash_vision.bases.offloading import offload_of
from dash_vision.diffusion.run import finish, fit
from dash_vision.files.errors import InputError
from tests.support.dreambooth import fitted, prepare, settings, states, train

CHANGES = {
    "sd": {"train_text_encoder": True, "gradient_checkpointing": True, "preserve_class": True},
    "sdxl": {"with_prior_preservation": True, "num_class_images": 1},
    "flux2": {"validation_steps": 2, "preserve_class": True},
}
SHORT = {"max_train_steps": 4, "prelaunch_steps": 2}


@pytest.fixture(scope="module")
def runs(bases, tiny, tmp_path_factory):
    """Jobs of whole runs by their base and --offload, with the files that they left."""
    found = {}

    def of(base, offload):
        if (base, offload) not in found:
            out = tmp_path_factory.mktemp("offload") / "out"
            changes = {**CHANGES[base], **SHORT, "offload": offload}
            if base == "flux2":
                changes["pretrained_model_name_or_path"] = str(tiny("flux2-klein"))
            found[base, offload] = train(settings(bases, out, base, **changes))
        return found[base, offload]

    return of


@pytest.mark.parametrize(
    ("base", "offload"), [("sd", "group"), ("sdxl", "group"), ("flux2", "group"), ("sdxl", "model")]
)
def test_a_run_is_the_same_to_the_last_bit(runs, base, offload):
    plain, other = runs(base, "none"), runs(base, offload)
    assert other.training.losses == plain.training.losses
    expected, found = states(plain), states(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    pictures = [job.plan.output / "samples.png" for job in (plain, other)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    waits = offload_of(other.base.denoiser)
    assert (waits is not None) == (offload == "group")


def test_generate_draws_the_same_pictures(runs, tmp_path):
    out = runs("sd", "group").plan.output
    for offload in ("none", "group"):
        words = ["--prompts", "a {}", "-o", str(tmp_path / offload), "--device", "cpu", "--offload", offload]
        assert main(["generate", str(out), *words]) == 0
    drawn, expected = (np.asarray(Image.open(tmp_path / name / "000-00.png")) for name in ("group", "none"))
    assert np.array_equal(drawn, expected)


def test_blocks_wait_and_what_is_trained_does_not(bases, tmp_path):
    job = prepare(settings(bases, tmp_path / "out", offload="group", **SHORT))
    offload = offload_of(job.base.denoiser)
    trained = {id(parameter) for parameter in job.training.parameters}
    assert trained
    assert not trained & offload._homes.keys()
    waiting = sum(parameter.numel() for parameter in offload._homes.values())
    frozen = sum(p.numel() for p in job.base.denoiser.parameters() if not p.requires_grad)
    assert waiting > 0.5 * frozen
    before = {name: parameter.data_ptr() for name, parameter in job.base.denoiser.named_parameters()}
    fit(job)
    finish(job)
    assert before == {name: parameter.data_ptr() for name, parameter in job.base.denoiser.named_parameters()}


def test_a_run_may_be_resumed_with_another_offload(bases, tmp_path):
    whole = fitted(settings(bases, tmp_path / "a", offload="group", checkpointing_steps=3, **SHORT))
    checkpoint = str(tmp_path / "a/checkpoint-3.safetensors")
    again = fitted(settings(bases, tmp_path / "b", offload="none", resume_from_checkpoint=checkpoint, **SHORT))
    assert again.training.losses == whole.training.losses


def test_the_denoiser_is_away_while_pictures_are_decoded(bases, tmp_path, monkeypatch):
    """A device that is none stands for the one it leaves."""
    job = prepare(settings(bases, tmp_path / "out", offload="model"))
    told = []
    placed = sampling.placed

    def watched(networks, device):
        told.append(([network is job.base.denoiser for network in networks], device.type))
        return placed(networks, device)

    monkeypatch.setattr(sampling, "placed", watched)
    how = sampling.Sampling(1, 1.0, (16, 16), makes_room=True)
    sampling.sample(job.base, ["a cat"], 0, [0], how, torch.device("cpu"))
    job.close()
    away, encoding, drawing, decoding = told
    assert away == decoding == ([True], "cpu")
    assert not any(encoding[0])
    assert drawing[0] == [False, True]
    told.clear()
    sampling.sample(job.base, ["a cat"], 0, [0], dataclasses.replace(how, makes_room=False), torch.device("cpu"))
    assert told[0] == told[3] == ([], "cpu")


@pytest.mark.parametrize(
    ("changes", "processes", "said"),
    [
        ({"compile": True}, 1, "--compile does not go with --offload group"),
        ({"quantize": "nf4"}, 1, "--quantize nf4 does not go with --offload group, .*; give --offload model"),
        ({}, 2, "--offload group is for a single process, and there are 2; start one, or let FSDP split"),
    ],
)
def test_what_does_not_go_with_it_is_one_sentence(bases, tmp_path, changes, processes, said, monkeypatch):
    monkeypatch.setattr("dash_vision.runs.runtime.Runtime.world", processes)
    with pytest.raises(InputError, match=said):
        prepare(settings(bases, tmp_path / "out", offload="group", **changes))

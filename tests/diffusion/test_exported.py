"""A run loads its own file into stock diffusers and says what came of it; --sample_with draws with another base."""

import json
import re
import shutil

import diffusers
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.utils import convert_state_dict_to_peft
from safetensors.torch import load_file, save_file

from dash_vision.bases.families import FAMILIES
from dash_vision.bases.flux2 import Flux2Klein
from dash_vision.bases.loading import load_base
from dash_vision.diffusion import exported, run
from dash_vision.files.errors import InputError, RunError
from tests.support.dreambooth import prepare, settings, train
from tests.support.flow import LENGTH, VELOCITIES
from tests.support.tiny import load_tiny, save_flux2_klein

FILE = "pytorch_lora_weights.safetensors"
SHORT = {"max_train_steps": 3, "prelaunch_steps": 2}


def flow(bases, tiny, name, out, **changes):
    common = {"pretrained_model_name_or_path": str(tiny(name)), "resolution": 16, "num_crop_variants": 1}
    common |= {"max_sequence_length": LENGTH, "train_batch_size": 1} | SHORT
    return settings(bases, out, **common | changes)


def klein(bases, tiny, out, **changes):
    return flow(bases, tiny, "flux2-klein", out, **changes)


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        ("sd", {"train_text_encoder": True}),
        ("sdxl", {"train_text_encoder": True}),
        ("sd-v", {"dash_k": 0}),
        ("klein", {}),
    ],
)
def test_the_run_says_that_stock_diffusers_loads_its_file(bases, tiny, tmp_path, base, changes):
    lines, out = [], tmp_path / "out"
    config = klein(bases, tiny, out) if base == "klein" else settings(bases, out, base, **SHORT | changes)
    job = train(config, lines)
    (said,) = (line for line in lines if line.startswith("the exported adapter"))
    difference, recognised, tensors = re.search(r"model: (\S+); (\d+) of (\d+) tensors recognised", said).groups()
    assert float(difference) < 1e-5
    assert recognised == tensors
    assert int(tensors) == len(load_file(out / FILE)) == 2 * sum(len(a.layers) for a in job.adapters.values())


@pytest.mark.parametrize("name", ["flux", "sd3", "sd3-without-t5"])
def test_stock_diffusers_loads_a_trained_clip(bases, tiny, tmp_path, name):
    """The stock transformer is told by the stock pipeline's own encoding of a prompt, which the file has changed; T5 is
    as it was. kohya's file has the same CLIP by diffusers' converter."""
    out, lines, prompt = tmp_path / "out", [], "a photo of sks cat"
    job = train(flow(bases, tiny, name, out, train_text_encoder=True, learning_rate=0.1), lines)
    clips = ["text_encoder"] if name == "flux" else ["text_encoder", "text_encoder_2"]
    assert list(job.adapters) == ["transformer", *clips]
    assert any(re.search(r"(\d+) of \1 tensors recognised", line) for line in lines)
    with torch.no_grad():
        family, velocity = job.base.family, VELOCITIES[name]
        noisy, level = torch.randn(1, 16, 8, 8), torch.tensor([0.4])
        told = family.encode_tokens(job.base.trained_encoders(), job.material.conditions[prompt])
        trained = family.denoise(job.base.denoiser, noisy, level, told)
        stock = load_tiny(tiny(name))
        before = stock.text_encoder(torch.tensor([[1, 2, 3]]))[0]
        stock.load_lora_weights(str(out), weight_name=FILE)
        assert (stock.text_encoder(torch.tensor([[1, 2, 3]]))[0] - before).abs().max() > 1e-3
        assert (velocity(stock, noisy, level, [prompt]) - trained).abs().max() < 1e-5 * trained.abs().max()
    if name == "flux":
        written, kohya = load_file(out / FILE), load_file(out / "kohya/out.safetensors")
        clip = {key: tensor for key, tensor in kohya.items() if key.startswith("lora_te1_")}
        assert len(clip) == 3 * len(job.adapters["text_encoder"].layers)
        read = convert_state_dict_to_peft(_convert_kohya_flux_lora_to_diffusers(clip))
        assert len(read) == 2 * len(job.adapters["text_encoder"].layers)
        assert all(torch.equal(written[key], tensor) for key, tensor in read.items())


@pytest.mark.parametrize("name", ["flux", "sd3", "sd3-without-t5"])
@torch.no_grad()
def test_clip_tells_a_trainer_what_it_tells_the_pipeline(tiny, name):
    base, prompts = load_base(str(tiny(name)), max_sequence_length=LENGTH), ["a photo of sks cat", "a dog"]
    encoded = base.family.encode_prompts(base.pipeline, prompts, torch.device("cpu"), base.prompt_options)
    tokens = base.family.tokenize(base.pipeline, prompts, options=base.prompt_options)
    told = base.family.encode_tokens(base.trained_encoders(), tokens)
    together = base.family.join([encoded[prompt] for prompt in prompts])
    assert told.keys() == together.keys()
    assert all(torch.allclose(told[key], together[key], atol=1e-6) for key in told)


def test_the_copy_shares_the_weights_and_leaves_the_trained_network_alone(bases, tiny, tmp_path):
    job = train(klein(bases, tiny, tmp_path / "out"))
    (adapter,) = job.adapters.values()
    stock = exported.stock_pipeline(job.base.pipeline, job.adapters)
    assert type(stock) is type(job.base.pipeline)
    for name, layer in adapter.layers.items():
        plain = stock.transformer.get_submodule(name)
        assert type(plain) is torch.nn.Linear
        assert plain.weight.data_ptr() == layer.base.weight.data_ptr()
        assert job.base.denoiser.get_submodule(name) is layer
    assert job.base.denoiser.dash_adapters == {"default": adapter}


def scaled(tensors):
    """Every reader recognises all of it, and the model is another one."""
    key = next(key for key in tensors if key.endswith("lora_B.weight"))
    return tensors | {key: tensors[key] * 3}


def renamed(tensors):
    """diffusers leaves out what it does not know, with a warning."""
    key = next(iter(tensors))
    kept = dict(tensors)
    kept[key.replace("transformer_blocks.0", "transformer_blocks.7")] = kept.pop(key)
    return kept


@pytest.mark.parametrize("damage", [scaled, renamed])
def test_a_file_that_stock_diffusers_does_not_load_as_trained_is_an_error_and_all_is_kept(
    bases, tiny, tmp_path, monkeypatch, damage
):
    out = tmp_path / "out"
    original = exported.load_exported

    def spoiled(job):
        save_file(damage(load_file(out / FILE)), out / FILE)
        return original(job)

    monkeypatch.setattr(run, "load_exported", spoiled)
    with pytest.raises(RunError, match=r"diffusers does not load .* as it was trained"):
        train(klein(bases, tiny, out, learning_rate=0.1))
    assert {"dash_adapter.safetensors", FILE, "run.json"} <= {path.name for path in out.iterdir()}


def test_another_base_of_the_family_draws_the_samples_in_its_own_steps(bases, tiny, tmp_path, monkeypatch):
    turbo = save_flux2_klein(tmp_path / "turbo", seed=9, is_distilled=True)
    used = []
    original = run.draw_samples

    def watched(sheet, base, *rest, **more):
        used.append((base.name, sheet.steps, sheet.guidance))
        return original(sheet, base, *rest, **more)

    monkeypatch.setattr(run, "draw_samples", watched)
    train(klein(bases, tiny, tmp_path / "out", sample_with=str(turbo), num_inference_steps=None))
    assert used == [(str(turbo), 4, 1.0)]
    with pytest.raises(InputError, match="is a Z-Image, and the trained base a FLUX"):
        prepare(klein(bases, tiny, tmp_path / "other", sample_with=str(tiny("z-image"))))


class Mirror(Flux2Klein):
    """A family that no module of the package knows: its denoiser is told mirrored latents."""

    name = "Mirror"
    pipeline_class = "MirrorPipeline"

    def denoise(self, network, noisy, times, conditions):
        return super().denoise(network, noisy.flip(-1), times, conditions).flip(-1)


def test_a_family_is_one_class_and_one_line(bases, tiny, tmp_path, monkeypatch):
    kind = type("MirrorPipeline", (diffusers.Flux2KleinPipeline,), {})
    monkeypatch.setattr(diffusers, "MirrorPipeline", kind, raising=False)
    monkeypatch.setattr("dash_vision.bases.families.FAMILIES", (*FAMILIES, Mirror()))
    folder = tmp_path / "mirror"
    shutil.copytree(tiny("flux2-klein"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "MirrorPipeline"}))
    lines = []
    job = train(klein(bases, tiny, tmp_path / "out", pretrained_model_name_or_path=str(folder)), lines)
    assert job.training.schedule.launched
    assert lines[0].startswith(f"base: {folder} (Mirror, ")
    assert job.training.losses != train(klein(bases, tiny, tmp_path / "plain")).training.losses

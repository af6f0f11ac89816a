"""The build of the miniature's weights."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dash_vision import miniature
from dash_vision.miniature.__main__ import main
from dash_vision.miniature.train import data, decoder, vae
from dash_vision.miniature.train.flow import ALIGNED, Alignment, states_of
from dash_vision.miniature.train.networks import new_flow_transformer
from tests.support.miniature import load_weights


def test_a_work_folder_of_other_settings_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "settings.json").write_text('{"scenes": 500, "seed": 3}')
    assert main(["build", "--work", str(tmp_path), "--stages", "tokenizer"]) == 2
    assert "another --work folder" in capsys.readouterr().err


@pytest.fixture
def few(monkeypatch) -> None:
    """Twenty scenes are a chunk, eight a batch, and ten fresh ones tell how good the VAE is."""
    monkeypatch.setattr(data, "CHUNK", 20)
    # A process that is forked knows of that, and need not import torch again.
    monkeypatch.setattr(multiprocessing, "get_context", lambda way: _CONTEXT("fork"))
    monkeypatch.setattr(vae, "rendered", lambda scenes: data.rendered(scenes[:10]))
    names = ("vae", "decoder", "unet", "clip", "flow")
    plans = {name: replace(getattr(data.Settings, name), batch_size=8) for name in names}
    monkeypatch.setattr(data, "Settings", partial(data.Settings, **plans))


_CONTEXT = multiprocessing.get_context


def test_a_build_that_goes_on_from_exported_weights_keeps_their_latents_and_words(tmp_path: Path, few) -> None:
    counts = [word for name in ("vae", "decoder", "unet", "clip", "flow") for word in (f"--{name}-steps", "1")]
    arguments = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), "--init", str(miniature.WEIGHTS)]
    assert main(["build", *arguments, "--scenes", "20", "--processes", "1", *counts]) == 0
    before, after = (load_weights(folder) for folder in (miniature.WEIGHTS, tmp_path / "out"))
    assert before.keys() <= after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = {name.split(".")[0] for name in changed}
    assert parts >= {"pipeline/vae", "pipeline/unet", "pipeline/text_encoder", "clip"}
    assert not [name for name in changed if name.startswith(("pipeline/vae.encoder", "pipeline/vae.quant_conv"))]
    for pipeline in ("pipeline", "flow"):
        (decoded,) = (load_file(f) for f in (tmp_path / "work" / "decoder").glob("*.safetensors"))
        assert all(torch.equal(t.half(), after[f"{pipeline}/vae.{name}"]) for name, t in decoded.items())
    for file in ("pipeline/tokenizer/tokenizer.json", "pipeline/vae/config.json"):
        old, new = (json.loads((folder / file).read_text()) for folder in (miniature.WEIGHTS, tmp_path / "out"))
        assert {**old, "_diffusers_version": ""} == {**new, "_diffusers_version": ""}


def test_decoder_and_critic_learn_from_one_sum_and_neither_moves_the_other(tmp_path: Path, few) -> None:
    """Gradients of the sum are those of two losses that know nothing of each other."""
    work = tmp_path / "work"
    shutil.copytree(miniature.WEIGHTS / "pipeline" / "vae", work / "vae")
    settings = data.Settings(work, tmp_path / "out", scenes=20, processes=1)
    data.make_data(settings)
    data.make_latents(settings)
    autoencoder, fit, critic = decoder._training(settings)
    batch = decoder.ALONE

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    fit.runtime.autocast = contextlib.nullcontext
    decoder._loss_of(autoencoder, critic, fit, settings)(batch, generator())[0].backward()
    found = {name: p.grad.clone() for name, p in autoencoder.named_parameters() if p.grad is not None}
    of_critic = {name: p.grad.clone() for name, p in critic.named_parameters()}
    autoencoder.zero_grad()
    critic.zero_grad()

    draw = generator()
    index = torch.randint(20, (8,), generator=draw)
    renders = torch.from_numpy(np.load(work / "images.npy")[index.numpy()]).permute(0, 3, 1, 2) / 127.5 - 1
    latents = torch.from_numpy(np.load(work / "latents.npy")[index.numpy()].astype(np.float32))
    latents = latents + decoder.NOISE * torch.randn(latents.shape, generator=draw)
    decoded = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
    (verdicts, features), (of_renders, wanted) = critic(decoded), critic(renders)
    slopes = sum((decoded.diff(dim=d) - renders.diff(dim=d)).abs().mean() for d in (2, 3))
    loss = (decoded - renders).abs().mean() + 2 * (decoded - renders).square().mean() + 0.5 * slopes
    loss = loss + decoder.LIKENESS * sum((a - b).abs().mean() for a, b in zip(features, wanted, strict=True)) / 3
    decoding = dict(autoencoder.named_parameters())
    assert found.keys() == {name for name, p in decoding.items() if p.requires_grad}
    assert not [name for name in found if name.startswith(("encoder", "quant_conv"))]
    loss = loss - decoder.FOOLING * verdicts.mean()
    gradients = torch.autograd.grad(loss, [decoding[name] for name in found], retain_graph=True)
    for name, gradient in zip(found, gradients, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
    hinge = (1 - of_renders).clamp(min=0).mean() + (1 + critic(decoded.detach())[0]).clamp(min=0).mean()
    for name, gradient in zip(of_critic, torch.autograd.grad(hinge, list(critic.parameters())), strict=True):
        torch.testing.assert_close(of_critic[name], gradient, rtol=1e-3, atol=1e-6)
    assert (fit.step, len(fit.parameters)) == (0, len(found) + len(of_critic))


def test_a_verdict_of_the_critic_is_of_26_pixels() -> None:
    torch.manual_seed(0)
    critic = decoder.Critic().double()
    for stage in critic.stages[1:]:
        stage[1] = torch.nn.Identity()  # a group's mean and variance are of the whole picture
    picture = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(picture)[0][0, 0, 8, 8], picture)
    assert gradient.sum(1)[0].nonzero().amax(0).tolist() == [46, 46]
    assert gradient.sum(1)[0].nonzero().amin(0).tolist() == [21, 21]


def test_the_flow_matching_transformer_is_trained_and_drawn_by_stock_diffusers(tmp_path: Path, few, capsys) -> None:
    from diffusers import ZImagePipeline

    work, out = tmp_path / "work", tmp_path / "out"
    arguments = ["--work", str(work), "--output", str(out), "--init", str(miniature.WEIGHTS), "--scenes", "20"]
    stages = ["--stages", "data", "tokenizer", "latents", "flow", "export"]
    shutil.copytree(miniature.WEIGHTS / "pipeline" / "vae", work / "vae")
    command = ["build", *arguments, "--processes", "1", "--flow-steps", "2", *stages]
    assert main(command) == 2
    assert "run the stage 'clip' first" in capsys.readouterr().err
    shutil.copytree(miniature.WEIGHTS / "clip", work / "clip")
    assert main(command) == 0
    assert [path.name for path in out.iterdir()] == ["flow"]
    pipeline = ZImagePipeline.from_pretrained(out / "flow")
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    (picture,) = pipeline("a photo of a red cat", generator=torch.Generator().manual_seed(0), **options).images
    assert picture.shape == (64, 64, 3)
    states, _ = pipeline.encode_prompt("a photo of a red cat", "cpu", do_classifier_free_guidance=False)
    expected = states_of(pipeline.text_encoder, pipeline.tokenizer, ["a photo of a red cat"])
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)

    # What the checkpoint of the last step holds is what was exported.
    now = ["--output", str(tmp_path / "now"), "--init", str(miniature.WEIGHTS), "--scenes", "20"]
    assert main(["build", "--work", str(work), *now, "--snapshot"]) == 0
    exported, taken = (load_weights(folder) for folder in (out, tmp_path / "now"))
    assert exported.keys() == taken.keys()
    assert all(torch.equal(exported[name], taken[name]) for name in exported)
    assert main(["build", "--work", str(tmp_path), *now, "--snapshot"]) == 2
    assert "no checkpoint of a denoiser" in capsys.readouterr().err


@torch.no_grad()
def test_a_noisy_pictures_tokens_are_compared_patch_by_patch_with_the_clean_ones() -> None:
    """The mean over 64 patches of 1 - cosine; the transformer's first 64 tokens are the picture's, row by row."""
    torch.manual_seed(0)
    transformer, clip = new_flow_transformer().eval(), miniature.load_clip()
    alignment, tokens = Alignment(transformer, clip.vision_model), []
    transformer.layers[ALIGNED - 1].register_forward_hook(lambda layer, inputs, output: tokens.append(output))
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    latents, states = list(torch.randn(2, 4, 1, 16, 16).unbind()), [torch.randn(5, 128), torch.randn(9, 128)]
    transformer(latents, torch.tensor([0.2, 0.7]), states)
    wanted = clip.vision_model(pictures, output_hidden_states=True).hidden_states[-2].numpy()
    found = alignment.project(tokens[0]).numpy()
    cosines = [
        np.dot(found[i, j], wanted[i, 1 + j]) / np.linalg.norm(found[i, j]) / np.linalg.norm(wanted[i, 1 + j])
        for i in range(2)
        for j in range(64)
    ]
    assert alignment(pictures).item() == pytest.approx(1 - np.mean(cosines), abs=1e-5)

"""The flow-matching families, each against its stock pipeline: the denoiser's inputs, pictures, prompts, targets."""

import copy
import math
from functools import cache

import pytest
import torch
from torch import nn

from dash_vision.bases.family import PromptOptions
from dash_vision.bases.loading import load_base
from dash_vision.bases.noise import NoiseOptions
from dash_vision.bases.sampling import Sampling
from dash_vision.core.targets import find_targets
from dash_vision.files.errors import InputError
from tests.support.flow import VELOCITIES
from tests.support.tiny import load_tiny
from tests.support.tiny.parts import pictures

CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("name", VELOCITIES)


@pytest.fixture(scope="module")
def loaded(tiny):
    """(our base, stock pipeline) by name."""
    return cache(lambda name: (load_base(str(tiny(name))), load_tiny(tiny(name))))


def noisy_of(base, number=2, size=(16, 24)):
    shape = base.family.latent_shape(base.pipeline, size)
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(1))


@every_family
@torch.no_grad()
def test_the_denoiser_is_told_what_the_pipeline_tells_it(loaded, name):
    """One step of the stock sampler from level s to 0 goes by s times the direction."""
    base, stock = loaded(name)
    noisy, levels = noisy_of(base), torch.tensor([0.7, 0.7])
    prompts = ["a photo of sks dog", "a photo of sks cat"]
    encoded = base.family.encode_prompts(base.pipeline, prompts, CPU)
    conditions = base.family.join([encoded[prompt] for prompt in prompts])
    ours = base.family.denoise(base.denoiser, noisy, levels, conditions)
    assert torch.allclose(
        ours, VELOCITIES[name](stock, noisy, levels, prompts, length=base.family.usual_length), atol=1e-5
    )

    stepper = copy.copy(stock)
    stepper.scheduler = type(stock.scheduler)(shift=1.0)
    drawn = base.family.sample(
        Stepping(stepper, sigmas=[0.7]),
        base.family.encode(stock, prompts, CPU, base.family.usual_length),
        noisy,
        Sampling(1, 1.0 if base.family.guided(stock) else 0.0, (16, 24)),
        torch.Generator(),
    )
    assert torch.allclose(drawn, noisy - 0.7 * ours, atol=1e-5)


class Stepping:
    """A pipeline that is called with further arguments."""

    def __init__(self, pipeline, **more):
        self.pipeline, self.more = pipeline, more

    def __call__(self, **given):
        return self.pipeline(**given | self.more)

    def __getattr__(self, name):
        return getattr(self.pipeline, name)


@every_family
@torch.no_grad()
def test_pictures_are_encoded_and_decoded_as_the_pipeline_does(loaded, name):
    base, stock = loaded(name)
    pixels = pictures(0, number=2, size=16)
    mean, std = base.family.encode_picture(base.pipeline, pixels)
    vae = stock.vae
    if name.startswith("flux2"):
        expected = stock._encode_vae_image(pixels, None)
    elif name in ("qwen-image", "krea2"):
        middle, spread = (torch.tensor(v)[:, None, None] for v in (vae.config.latents_mean, vae.config.latents_std))
        expected = (vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0] - middle) / spread
    else:
        expected = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    assert torch.allclose(mean, expected, atol=1e-5)
    assert mean.shape[1:] == base.family.latent_shape(base.pipeline, (16, 16))
    assert std.shape == mean.shape
    assert (std >= 0).all()

    prompt = ["a photo of sks dog"]
    noise = noisy_of(base, 1, (16, 16))
    how = Sampling(2, 3.0, (16, 16))
    inputs = base.family.sampler_inputs(base.pipeline, prompt, CPU)
    latents = base.family.sample(base.pipeline, inputs, noise, how, torch.Generator())
    options = {"num_inference_steps": 2, "width": 16, "height": 16, "latents": base.family.pack(noise)}
    scale = {"true_cfg_scale": 3.0, "negative_prompt": [""]} if name == "qwen-image" else {"guidance_scale": 3.0}
    picture = stock(prompt=prompt, **options, **scale, output_type="pt").images
    assert torch.allclose(base.family.decode(base.pipeline, latents).clamp(-1, 1) / 2 + 0.5, picture, atol=1e-4)


@every_family
@torch.no_grad()
def test_prompts_of_different_lengths_are_told_together_as_they_are_alone(loaded, name):
    base, _ = loaded(name)
    noisy, levels = noisy_of(base), torch.tensor([0.3, 0.9])
    prompts = ["a dog", "a photo of sks cat on the beach, in the evening"]
    encoded = base.family.encode_prompts(base.pipeline, prompts, CPU)
    together = base.family.denoise(base.denoiser, noisy, levels, base.family.join([encoded[p] for p in prompts]))
    for i, prompt in enumerate(prompts):
        alone = base.family.denoise(base.denoiser, noisy[i : i + 1], levels[i : i + 1], encoded[prompt])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


@every_family
@torch.no_grad()
def test_a_shorter_prompt_length_is_the_pipeline_s(loaded, name):
    base, stock = loaded(name)
    # FLUX.2-dev begins with a message that is hundreds of the tiny tokenizer's tokens long.
    options = PromptOptions(length=400 if name == "flux2-dev" else 64)
    embeds = stock.encode_prompt(*["a dog"] * (3 if name.startswith("sd3") else 1), **call_of(name, options.length))
    ours = base.family.encode_prompts(base.pipeline, ["a dog"], CPU, options)["a dog"]["prompt_embeds"]
    assert torch.equal(torch.as_tensor(ours[0]), embeds[0][0])
    long = "sks dog " * 100
    assert base.family.left_out(base.pipeline, "a dog", options) == ""
    cut = base.family.left_out(base.pipeline, long, options)
    assert cut
    assert long.strip().endswith(cut)
    # What is told to be cut changes nothing, and what is before it does.
    kept = long.strip().removesuffix(cut)
    texts = (long, kept + "x" * len(cut), "x" + kept[1:] + cut)
    first, other_end, other_start = (
        torch.as_tensor(base.family.encode_prompts(base.pipeline, [t], CPU, options)[t]["prompt_embeds"][0])
        for t in texts
    )
    assert torch.allclose(first, other_end, atol=1e-5)
    assert bool(kept) != torch.equal(first, other_start)


def call_of(name, length):
    options = {"max_sequence_length": length}
    if name.startswith(("z-", "sd3")):
        options["do_classifier_free_guidance"] = False
    return options | ({"prompt_2": None} if name == "flux" else {})


@every_family
def test_presets_hit_the_blocks_and_nothing_beside_them(loaded, name):
    """No refiner, no modulation, no embedder, and no layer whose output goes nowhere."""
    base, _ = loaded(name)
    linear = {n for n, module in base.denoiser.named_modules() if isinstance(module, nn.Linear)}
    blocks = {n for n in linear if n.startswith(("transformer_blocks.", "single_transformer_blocks.", "layers."))}
    found = {
        preset: set(find_targets(base.denoiser, base.family.target(base.pipeline, preset)))
        for preset in ("attention", "attention-mlp", "all-linear")
    }
    assert found["attention"] <= found["attention-mlp"] <= found["all-linear"] <= blocks
    dead = gradients_missing(base)
    beside = {n for n in blocks if "norm" in n or "adaLN" in n or "_mod." in n}
    assert found["all-linear"] == blocks - beside - dead
    assert {n for n in blocks - dead if "attn." in n or "attention." in n} == found["attention"] - {
        n for n in found["attention"] if "attn." not in n and "attention." not in n
    }
    assert {
        type(base.denoiser.get_submodule(n.rsplit(".attn", 1)[0].rsplit(".attention", 1)[0])).__name__
        for n in found["attention"]
        if ".attn" in n or ".attention" in n
    } <= set(base.family.units)


def gradients_missing(base):
    """Linear layers that get no gradient in training."""
    encoded = base.family.encode_prompts(base.pipeline, ["a dog"], CPU)["a dog"]
    network = copy.deepcopy(base.denoiser).requires_grad_(True)
    base.family.denoise(network, noisy_of(base, 1), torch.tensor([0.5]), encoded).square().sum().backward()
    return {n.rpartition(".")[0] for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}


@every_family
def test_the_shift_is_the_one_of_the_pipeline_s_steps(loaded, name):
    """The stock pipeline's levels for a picture are evenly spaced ones, shifted."""
    base, stock = loaded(name)
    steps = base.family.suited(base.pipeline).num_inference_steps
    size = (32, 16)
    stock.scheduler = type(stock.scheduler).from_config(stock.scheduler.config, shift_terminal=None)
    inputs = base.family.encode(base.pipeline, ["a dog"], CPU, base.family.usual_length)

    def stop(pipeline, i, t, kept):
        pipeline._interrupt = True  # all levels are set by now
        return {}

    how = Sampling(steps, 1.0 if base.family.guided(stock) else 0.0, size)
    stepper = Stepping(stock, callback_on_step_end=stop)
    base.family.sample(stepper, inputs, noisy_of(base, 1, size), how, torch.Generator())
    levels = stock.scheduler.timesteps / 1000
    assert len(levels) == steps
    shift = base.noise(NoiseOptions()).shift(size)
    if name.startswith("sd3"):  # its scheduler draws the steps from a grid that is shifted once already
        return
    middle = 1 - (steps // 2) / steps
    assert levels[steps // 2].item() == pytest.approx(shift * middle / (1 + (shift - 1) * middle), rel=1e-3)
    assert not math.isclose(shift, 1.0)


@pytest.mark.parametrize(("name", "kind"), [("sd3", ValueError), ("z-image", IndexError)])
@torch.no_grad()
def test_the_largest_side_is_where_the_stock_transformer_has_no_more_positions(loaded, name, kind):
    base, stock = loaded(name)
    side, grid = base.family.largest(base.pipeline), base.grid
    for size in ((side, grid), (grid, side)):
        assert VELOCITIES[name](stock, noisy_of(base, 1, size), torch.tensor([0.5]), ["a dog"]).isfinite().all()
    for size in ((side + grid, grid), (grid, side + grid)):
        with pytest.raises(kind):
            VELOCITIES[name](stock, noisy_of(base, 1, size), torch.tensor([0.5]), ["a dog"])


@every_family
def test_options_that_a_base_does_not_have_are_refused(loaded, name):
    base, _ = loaded(name)
    with pytest.raises(InputError, match="--snr_gamma does nothing for this base"):
        base.noise(NoiseOptions(snr_gamma=5.0))
    with pytest.raises(InputError, match=f"--max_sequence_length is 5000; {base.family.name} takes 1 to"):
        base.family.check_prompts(base.pipeline, PromptOptions(length=5000))
    with pytest.raises(InputError, match="--prediction_type"):
        base.family.set_prediction(base.pipeline, "epsilon")
    if not base.denoiser.config.get("guidance_embeds"):
        with pytest.raises(InputError, match="--training_guidance_scale"):
            base.family.check_prompts(base.pipeline, PromptOptions(guidance=2.0))

"""The tiny pipelines that other tests train: they load, encode and sample, and nothing in them is dead."""

from functools import cache

import pytest
import torch

from tests.support.tiny import PIPELINES, load_tiny
from tests.support.tiny.parts import pictures
from tests.support.tiny.words import qwen_tokenizer

PROMPT = "a photo of sks dog"
every_pipeline = pytest.mark.parametrize("name", PIPELINES)


@pytest.fixture(scope="session")
def loaded(tiny):
    """Pipelines by name."""
    return cache(lambda name: load_tiny(tiny(name)))


def sample(pipeline, prompt=PROMPT, seed=0, output_type="pt"):
    """What two steps give, without classifier-free guidance."""
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": 2, "guidance_scale": 0.0, "generator": generator, "output_type": output_type}
    return pipeline(prompt=prompt, height=16, width=16, **options).images


def denoiser(pipeline):
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def last_call(pipeline):
    """Arguments of the denoiser's last call while the pipeline samples."""
    calls = []
    hook = denoiser(pipeline).register_forward_pre_hook(
        lambda _, args, options: calls.append((list(args), dict(options))), with_kwargs=True
    )
    sample(pipeline, output_type="latent")
    hook.remove()
    return calls[-1]


@torch.no_grad()
def answer(pipeline, args, options):
    output = denoiser(pipeline)(*args, **options)[0]
    return torch.stack(output) if isinstance(output, list) else output


def difference(a, b):
    """The difference of two tensors, relative to the first."""
    return float((a - b).norm() / a.norm())


@every_pipeline
def test_a_tiny_pipeline_samples_the_same_finite_pictures_for_one_seed(loaded, name):
    pipeline = loaded(name)
    first = sample(pipeline)
    assert first.shape == (1, 3, 16, 16)
    assert torch.isfinite(first).all()
    # Clipped pictures of one colour would be finite as well.
    assert first.std() > 0.05
    assert torch.equal(first, sample(pipeline))
    assert difference(first, sample(pipeline, seed=1)) > 0.01


@every_pipeline
def test_a_tiny_denoiser_depends_on_its_input_the_time_and_the_prompt(loaded, name):
    pipeline = loaded(name)
    args, options = last_call(pipeline)
    output = answer(pipeline, args, options)
    assert 0.1 < output.std() < 30
    assert difference(sample(pipeline, output_type="latent"), sample(pipeline, "cats", output_type="latent")) > 0.001

    def changed(position, keyword, change):
        moved, named = list(args), dict(options)
        if keyword in named:
            named[keyword] = change(named[keyword])
        else:
            moved[position] = change(moved[position])
        return difference(output, answer(pipeline, moved, named))

    def rolled(latents):
        return [rolled(each) for each in latents] if isinstance(latents, list) else latents.roll(1, -1)

    assert changed(0, "hidden_states", rolled) > 0.01
    assert changed(1, "timestep", lambda time: 0.5 * time) > 0.01


# What the last block makes of the text goes nowhere, in the real models as well.
WITHOUT_GRADIENT = {
    "qwen-image": {"attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2"},
    "sd3": {"attn.add_q_proj", "attn.norm_added_q"},
    "sd3-without-t5": {"attn.add_q_proj", "attn.norm_added_q"},
}


@every_pipeline
def test_every_layer_of_a_tiny_denoiser_takes_part(loaded, name):
    """Where a gradient is zero everywhere, a test of training would pass that trains nothing."""
    pipeline = loaded(name)
    args, options = last_call(pipeline)
    model = denoiser(pipeline)
    sum((part**2).sum() for part in model(*args, **options)[0]).backward()
    dead = {path for path, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    model.zero_grad(set_to_none=True)
    expected = {f"transformer_blocks.1.{module}" for module in WITHOUT_GRADIENT.get(name, ())}
    assert {path.rpartition(".")[0] for path in dead} == expected


@every_pipeline
def test_latents_of_pictures_have_the_mean_and_deviation_that_the_pipeline_takes_away(loaded, name):
    vae = loaded(name).vae
    images = pictures(0)
    with torch.no_grad():
        if name.startswith("flux2"):
            latents = torch.nn.functional.pixel_unshuffle(vae.encode(images).latent_dist.mode(), 2)
            shape = (1, -1, 1, 1)
            latents = (latents - vae.bn.running_mean.view(shape)) / vae.bn.running_var.view(shape).sqrt()
        elif name in ("qwen-image", "krea2"):
            latents = vae.encode(images[:, :, None]).latent_dist.mode()
            shape = (1, -1, 1, 1, 1)
            mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
            latents = (latents - mean.view(shape)) / std.view(shape)
        elif name == "sdxl-v":
            latents = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
        else:
            latents = (vae.encode(images).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    assert latents.mean().abs() < 0.02
    assert 0.95 < latents.std() < 1.05


def test_the_tiny_tokenizer_splits_the_template_of_qwen_image_as_the_pipelines_count(loaded):
    tokenizer = qwen_tokenizer()
    qwen, krea = loaded("qwen-image"), loaded("krea2")
    prefix, suffix = qwen.prompt_template_encode.split("{}")
    assert len(tokenizer(prefix).input_ids) == qwen.prompt_template_encode_start_idx
    assert len(tokenizer(krea.prompt_template_encode_prefix).input_ids) == krea.prompt_template_encode_start_idx
    assert len(tokenizer(suffix).input_ids) == krea.prompt_template_encode_num_suffix_tokens
    assert tokenizer.decode(tokenizer("Ein Hund, süß!").input_ids) == "Ein Hund, süß!"

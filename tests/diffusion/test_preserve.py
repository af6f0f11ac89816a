"""--preserve_class: what the adapter predicts for the class prompt is kept near what the frozen base predicts."""

import pytest
import torch

from dash_vision.bases.loading import load_base
from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.prompts import derive_prompts
from dash_vision.files.errors import InputError
from tests.support.dreambooth import fitted, prepare, settings, states

BASES = [("sd", {"train_text_encoder": True}), ("sdxl", {"snr_gamma": 5.0}), ("flux2-klein", {})]


@pytest.fixture
def job_of(bases, tiny, tmp_path):
    """A prepared job whose adapters are launched and hold numbers everywhere, or (trained=False) are fresh."""
    jobs = []

    def of(name, trained=True, **changes):
        size = {}
        if name == "flux2-klein":
            size = {"pretrained_model_name_or_path": str(tiny(name)), "resolution": 16, "max_sequence_length": 32}
            name = "sd"
        config = settings(bases, tmp_path / str(len(jobs)), name, **{"preserve_class": True, **size, **changes})
        job = prepare(config)
        jobs.append(job)
        for adapter in job.adapters.values() if trained else ():
            filled(adapter)
        return job

    yield of
    for job in jobs:
        job.close()


@torch.no_grad()
def filled(adapter):
    generator = torch.Generator().manual_seed(7)
    for key, parameter in adapter.named_parameters():
        if key.endswith(".B"):
            parameter.normal_(std=0.05, generator=generator)
    adapter.launch()
    for key, parameter in adapter.named_parameters():
        if key.endswith(".dsigma"):
            parameter.normal_(std=0.05, generator=generator)


@torch.no_grad()
def said_by_the_base(job, batch):
    """What the base says without any adapter: it is loaded anew."""
    base = load_base(**job.plan.settings.of_base())
    family, device = base.family, torch.device("cpu")
    told = family.encode_prompts(base.pipeline, batch.prompts, device, base.prompt_options)
    conditions = family.join([told[prompt] for prompt in batch.prompts]) | batch.pictures
    base.denoiser.train()
    noisy = job.process.noisy(batch.latents, batch.noise, batch.times)
    return family.denoise(base.denoiser, noisy, batch.times, conditions)


@pytest.mark.parametrize(("name", "changes"), BASES, ids=[name for name, _ in BASES])
def test_the_base_s_prediction_is_that_of_the_frozen_base_to_the_last_bit(job_of, name, changes):
    job = job_of(name, **changes)
    (batch,) = job.batches(0)
    kept = batch.of_base()
    assert kept.prompts == ["a photo of cat"] * 2
    expected = said_by_the_base(job, kept)
    assert torch.equal(job.of_base(kept), expected)
    network, conditions = job.networks[job.base.family.denoiser], job._conditions(kept)
    noisy = job.process.noisy(kept.latents, kept.noise, kept.times)
    trained = job.base.family.denoise(network, noisy, kept.times, conditions)
    assert (trained - expected).abs().max() > 1e-2 * expected.abs().max()


def test_an_adapter_that_does_nothing_has_nothing_to_preserve(job_of):
    preserving, plain = job_of("sd", trained=False), job_of("sd", trained=False, preserve_class=False)
    with torch.no_grad():
        assert preserving.loss(2).item() == pytest.approx(plain.loss(2).item(), rel=1e-6)


@pytest.mark.parametrize(("name", "changes"), BASES[:2], ids=["sd", "sdxl"])
def test_loss_and_gradients_are_those_of_the_formula(job_of, name, changes):
    """|pred(x, subject) - target|^2 + weight |pred(x, class) - base(x, class)|^2, each a mean, of one noisy x."""
    job, plain = job_of(name, preserve_class_weight=0.7, **changes), job_of(name, preserve_class=False, **changes)
    (batch,) = job.batches(1)
    kept = batch.of_base()
    expected = plain.loss(1)
    noisy = job.process.noisy(kept.latents, kept.noise, kept.times)
    said = plain.base.family.denoise(
        plain.networks[plain.base.family.denoiser], noisy, kept.times, class_conditions(plain, kept)
    )
    errors = (said - said_by_the_base(job, kept)).square().flatten(1).mean(1)
    expected = expected + 0.7 * (errors * job.process.weights(kept.times)).mean()
    loss = job.loss(1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    loss.backward()
    for mine, theirs in zip(job.training.parameters, plain.training.parameters, strict=True):
        scale = float(theirs.grad.abs().max())
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4 * scale)


def class_conditions(job, batch):
    """Told by the job's own text encoders, which a run without preservation has not asked for the class prompt."""
    family, pipeline = job.base.family, job.base.pipeline
    if job.plan.settings.train_text_encoder:
        ids = family.tokenize(pipeline, batch.prompts, torch.device("cpu"), job.base.prompt_options)
        return family.encode_tokens([pipeline.text_encoder], ids, job.base.prompt_options)
    base = load_base(**job.plan.settings.of_base())
    told = family.encode_prompts(base.pipeline, batch.prompts, torch.device("cpu"), base.prompt_options)
    return family.join([told[prompt] for prompt in batch.prompts]) | batch.pictures


def test_what_preserves_by_next_to_nothing_trains_what_is_trained_without(bases, tmp_path):
    common = {"gradient_accumulation_steps": 2, "adam_epsilon": 1e-2, "max_train_steps": 3, "prelaunch_steps": 1}
    plain = fitted(settings(bases, tmp_path / "plain", **common))
    next_to_nothing = {"preserve_class": True, "preserve_class_weight": 1e-12}
    preserving = fitted(settings(bases, tmp_path / "preserving", **common, **next_to_nothing))
    found = states(preserving)
    assert all(torch.allclose(t, found[key], atol=1e-5, rtol=0) for key, t in states(plain).items())


def test_both_kinds_of_preservation_go_together(job_of, tmp_path):
    """Class pictures of another shape than the subject's have a pass of their own."""
    prior = {"with_prior_preservation": True, "num_class_images": 2, "class_data_dir": str(tmp_path / "class")}
    (batch,) = job_of("sd", **prior).batches(0)
    assert batch.prompts == ["a photo of sks cat"] * 2 + ["a photo of cat"] * 4
    assert torch.equal(batch.latents[:2], batch.latents[4:])
    assert not torch.equal(batch.latents[:2], batch.latents[2:4])
    assert batch.share.tolist() == [0.5] * 6
    assert batch.kept == 2


def test_a_run_with_it_can_be_resumed_by_itself_alone(bases, tmp_path):
    changes = {"preserve_class": True, "checkpointing_steps": 2, "checkpoints_total_limit": None}
    changes |= {"max_train_steps": 3, "prelaunch_steps": 1}
    whole = fitted(settings(bases, tmp_path / "whole", **changes))
    checkpoint = str(tmp_path / "whole/checkpoint-2.safetensors")
    resumed = fitted(settings(bases, tmp_path / "resumed", **changes, resume_from_checkpoint=checkpoint))
    expected = states(whole)
    assert all(torch.equal(t, expected[key]) for key, t in states(resumed).items())
    with pytest.raises(InputError, match="--preserve_class True, this run has False"):
        prepare(
            settings(bases, tmp_path / "no", **changes | {"preserve_class": False}, resume_from_checkpoint=checkpoint)
        )


def test_an_adapter_is_left_out_for_a_moment_only(job_of):
    job = job_of("sd")
    adapter = job.adapters["unet"]
    with adapter.left_out():
        assert not any(layer._adding() for layer in adapter.layers.values())
    with pytest.raises(KeyError), adapter.left_out():
        raise KeyError
    assert all(layer._adding() for layer in adapter.layers.values())
    adapter.merge()
    with pytest.raises(RuntimeError, match="unmerge it first"), adapter.left_out():
        pass


@pytest.mark.parametrize(
    ("settings_", "prompt", "expected"),
    [
        ({"instance_data_dir": "cat"}, "a photo of sks cat", "a photo of cat"),
        ({"instance_data_dir": "cat"}, "a sks cat in the snow, ohwx", "a cat in the snow"),
        ({"instance_data_dir": "cat"}, "sks, a cat in the snow", "a cat in the snow"),
        ({"instance_data_dir": "cat"}, "a cat in the snow", "a photo of cat"),
        ({"instance_data_dir": "cat"}, "sks", "a photo of cat"),
        ({"instance_data_dir": "cat", "class_prompt": "an animal"}, "a sks cat in the snow", "an animal"),
        ({"instance_data_dir": "x", "instance_prompt": "my dog", "class_prompt": "a dog"}, "my dog", "a dog"),
    ],
)
def test_the_class_prompt_is_the_caption_without_its_rare_word(settings_, prompt, expected):
    prompts = derive_prompts(DreamBoothConfig(preserve_class=True, **settings_))
    assert prompts.of_class(prompt) == expected


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="--preserve_class_weight 0 leaves nothing of --preserve_class"):
        DreamBoothConfig(instance_data_dir="cat", preserve_class=True, preserve_class_weight=0.0)
    with pytest.raises(InputError, match="the class would learn the subject's name"):
        derive_prompts(DreamBoothConfig(instance_data_dir="x", instance_prompt="my dog", preserve_class=True))

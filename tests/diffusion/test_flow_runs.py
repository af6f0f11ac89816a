"""DreamBooth runs on the flow-matching families: the loss, what stock diffusers makes of the files, and resuming."""

import gc
import weakref
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch._dynamo.testing import CompileCounter

from dash_vision import DashConfig, inject
from dash_vision.bases.loading import Base, load_base
from dash_vision.bases.sampling import Sampling
from dash_vision.diffusion.job import DreamBoothJob
from dash_vision.diffusion.latents import Batch
from dash_vision.diffusion.run import draw, finish, fit
from dash_vision.files.errors import InputError
from tests.support.dreambooth import prepare, settings, train
from tests.support.flow import LENGTH, VELOCITIES, save_wide
from tests.support.tiny import load_tiny

CPU = torch.device("cpu")
PROMPT = "a photo of sks cat"


def of(bases, tiny, name, out, **changes):
    common = {"pretrained_model_name_or_path": str(tiny(name)), "resolution": 16, "num_crop_variants": 2}
    common |= {"train_batch_size": 1, "max_sequence_length": LENGTH}
    return settings(bases, out, **common | changes)


@dataclass
class ShortRun:
    """Three steps, the third after the launch, of a run that preserves the class. batch, loss: its third batch, and the
    loss of that before anything was trained. stock: the stock pipeline of its base."""

    name: str
    job: DreamBoothJob
    batch: Batch
    loss: float
    stock: DiffusionPipeline


@pytest.fixture(scope="module", params=VELOCITIES)
def short_run(request, bases, tiny, tmp_path_factory):
    name, out = request.param, tmp_path_factory.mktemp(request.param) / "out"
    changes = {"train_batch_size": 2, "lora_target": ["all-linear"], "max_train_steps": 3, "prelaunch_steps": 2}
    changes["preserve_class"] = True
    job = prepare(of(bases, tiny, name, out, learning_rate=3e-2, **changes))
    (batch,) = job.batches(3)
    with torch.no_grad():
        loss = job.loss(3).item()
    fit(job)
    finish(job)
    return ShortRun(name, job, batch, loss, load_tiny(tiny(name)))


@torch.no_grad()
def test_the_loss_is_the_formula_s(short_run):
    """Mean over the batch of |v(z_s) - (noise - z)|^2 with z_s = (1 - s) z + s noise, v by the stock transformer. While
    the adapter does nothing, it has nothing to preserve."""
    times = short_run.batch.times
    assert ((times > 0) & (times < 1)).all()
    assert short_run.loss == pytest.approx(formula(short_run.name, short_run.stock, short_run.batch), rel=1e-5)


@torch.no_grad()
def test_the_class_is_kept_as_the_stock_transformer_has_it(short_run):
    """The adapter is trained by then."""
    kept = short_run.batch.of_base()
    s = kept.times[:, None, None, None]
    noisy = (1 - s) * kept.latents + s * kept.noise
    assert kept.prompts == ["a photo of cat"] * 2
    expected = VELOCITIES[short_run.name](short_run.stock, noisy, kept.times, kept.prompts)
    assert (short_run.job.of_base(kept) - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def formula(name, stock, batch, guidance=1.0):
    count = len(batch.prompts) - batch.kept
    latents, noise, times = batch.latents[:count], batch.noise[:count], batch.times[:count]
    s = times[:, None, None, None]
    noisy = (1 - s) * latents + s * noise
    said = VELOCITIES[name](stock, noisy, times, batch.prompts[:count], guidance)
    return (said - (noise - latents)).square().mean().item()


@torch.no_grad()
def test_stock_diffusers_loads_what_was_trained(short_run):
    job, stock, velocity = short_run.job, short_run.stock, VELOCITIES[short_run.name]
    assert job.training.schedule.launched
    shape = job.base.family.latent_shape(job.base.pipeline, (16, 24))
    noisy = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    levels, prompts = torch.tensor([0.3, 0.8]), [PROMPT, PROMPT]
    untouched = velocity(stock, noisy, levels, prompts)
    conditions = job.base.family.join([job.material.conditions[p] for p in prompts])
    trained = job.base.family.denoise(job.base.denoiser, noisy, levels, conditions)
    stock.load_lora_weights(str(job.plan.output), weight_name="pytorch_lora_weights.safetensors")
    loaded = velocity(stock, noisy, levels, prompts)
    stock.unload_lora_weights()
    scale = trained.abs().max()
    assert (loaded - trained).abs().max() < 1e-5 * scale
    assert (untouched - trained).abs().max() > 1e-2 * scale
    assert (job.plan.output / "samples.png").is_file()


def test_the_lines_of_the_model_card_draw_a_picture_as_the_run_did(short_run, monkeypatch):
    monkeypatch.chdir(short_run.job.plan.output)
    lines = Path("README.md").read_text().split("```python\n")[1].split("```")[0].splitlines()
    scope, called = {}, {}
    exec("\n".join(lines[:-1]), scope)
    pipe = scope["pipe"]
    assert type(pipe) is type(short_run.stock)

    class Watched:
        def __call__(self, **given):
            called.update(given)
            return pipe(**given)

    exec(lines[-1], {"pipe": Watched()})
    assert Image.open("out.png").size == (16, 16)
    assert (called["prompt"], called["max_sequence_length"]) == (PROMPT, LENGTH)
    if short_run.name == "qwen-image":  # whose own guidance needs another prompt
        assert (called["true_cfg_scale"], called["negative_prompt"]) == (4.0, "")
    else:
        assert called["guidance_scale"] == short_run.job.base.defaults.guidance_scale
    Path("out.png").unlink()


@pytest.mark.parametrize("name", ["z-image", "flux"])
def test_bf16_rounds_no_more_than_the_stock_transformer_in_bf16(bases, tiny, tmp_path, name):
    """How far the stock transformer in bf16 is from itself in float32 is what its rounding costs; a run may be twice as
    far, in the loss of its first batch and, trained, from its own file in the stock pipeline in float32."""
    changes = {"max_train_steps": 3, "prelaunch_steps": 2, "learning_rate": 1e-2}
    changes["train_text_encoder"] = name == "flux"
    job = prepare(of(bases, tiny, name, tmp_path / "out", **changes), mixed_precision="bf16")
    (batch,) = job.batches(0)
    stock, velocity = load_tiny(tiny(name)), VELOCITIES[name]

    @torch.no_grad()
    def both(noisy, levels, prompts):
        """What the stock transformer says in float32, and how far it is from that in bf16."""
        exact = velocity(stock, noisy, levels, prompts)
        stock.transformer.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = velocity(stock, noisy, levels, prompts)
        stock.transformer.float()
        return exact, (rounded - exact).norm()

    s = batch.times[:, None, None, None]
    exact, rounding = both((1 - s) * batch.latents + s * batch.noise, batch.times, batch.prompts)
    target = batch.noise - batch.latents
    with torch.no_grad():
        loss = job.loss(0).item() * target.numel()
    # |a - t| and |b - t| differ by at most |a - b|.
    assert abs(loss**0.5 - (exact - target).norm()) <= 2 * rounding
    fit(job)
    finish(job)
    stock = load_tiny(tiny(name))
    stock.load_lora_weights(str(job.plan.output), weight_name="pytorch_lora_weights.safetensors")
    noisy, levels = torch.randn(batch.latents.shape), torch.tensor([0.6])
    exact, rounding = both(noisy, levels, [PROMPT])
    with torch.no_grad(), job.runtime.autocast():
        trained = job.base.family.denoise(job.base.denoiser, noisy, levels, job._conditions(batch))
    assert (trained - exact).norm() <= 2 * rounding


def test_a_compiled_transformer_is_one_graph_through_the_launch(tiny):
    base = load_base(str(tiny("flux2-klein")))
    adapter = inject(base.denoiser, DashConfig(rank=2, dash_k=3, target=base.family.target(base.pipeline, "attention")))
    conditions = base.family.encode_prompts(base.pipeline, [PROMPT], CPU)[PROMPT]
    noisy = torch.randn(1, *base.family.latent_shape(base.pipeline, (16, 16)))
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(base.denoiser, backend=graphs, fullgraph=True)  # fullgraph: a graph break is an error
    for step in range(3):
        said = base.family.denoise(compiled, noisy, torch.tensor([0.3 + 0.1 * step]), conditions)
        said.square().mean().backward()
        torch.optim.SGD(adapter.parameters(), lr=0.1).step()
        if step == 0:
            adapter.prepare()
            adapter.launch()
    last = [base.family.denoise(net, noisy, torch.tensor([0.5]), conditions) for net in (compiled, base.denoiser)]
    assert torch.allclose(*last, atol=1e-5)
    assert graphs.frame_count == 1
    torch._dynamo.reset()


def test_text_encoders_are_gone_before_the_transformer_comes(bases, tiny, tmp_path, monkeypatch):
    """The training prompts and the samples have asked them by then."""
    alive, read = {}, Base.read

    def watched(base, name):
        gc.collect()
        there = {part for part, network in alive.items() if network() is not None}
        if name == "transformer":
            assert there == {"vae"}
        network = read(base, name)
        alive[name] = weakref.ref(network)
        return network

    monkeypatch.setattr(Base, "read", watched)
    job = prepare(of(bases, tiny, "sd3", tmp_path / "out"))
    assert list(alive) == ["vae", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer"]
    draw(job, "samples.png", base_row=True)
    job.close()


def test_text_encoders_are_gone_before_the_first_step_where_class_pictures_needed_all(
    bases, tiny, tmp_path, monkeypatch
):
    encoders, read = [], Base.read

    def watched(base, name):
        network = read(base, name)
        encoders.extend([weakref.ref(network)] if name.startswith("text_encoder") else [])
        return network

    monkeypatch.setattr(Base, "read", watched)
    prior = {"with_prior_preservation": True, "num_class_images": 1, "class_data_dir": str(tmp_path / "class")}
    job = prepare(of(bases, tiny, "sd3", tmp_path / "out", **prior))
    gc.collect()
    assert [encoder() for encoder in encoders] == [None] * 3
    job.close()


# What follows is of no family, so that each has one of them.


@pytest.mark.parametrize("name", ["flux"])
def test_resuming_before_at_and_after_the_launch_is_exact(bases, tiny, tmp_path, name):
    changes = {
        "train_text_encoder": name == "flux" or name.startswith("sd3"),
        "max_train_steps": 4,
        "prelaunch_steps": 2,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": None,
        "gradient_accumulation_steps": 2,
        "with_prior_preservation": True,
        "num_class_images": 2,
        "class_data_dir": str(tmp_path / "class"),
        "random_flip": True,
        "lora_dropout": 0.2,
    }
    whole = prepare(of(bases, tiny, name, tmp_path / "whole" / "out", **changes))
    fit(whole)
    for step in (1, 2, 3):  # the launch comes right after step 2
        changes["resume_from_checkpoint"] = str(tmp_path / f"whole/out/checkpoint-{step}.safetensors")
        run = prepare(of(bases, tiny, name, tmp_path / str(step) / "out", **changes))
        assert run.training.schedule.launched == (step >= 2)
        fit(run)
        same_adapters(whole, run, 0.0)
        assert run.training.losses == whole.training.losses


def same_adapters(one, other, tolerance):
    for mine, theirs in zip(one.adapters.values(), other.adapters.values(), strict=True):
        state = theirs.state_dict()
        assert state.keys() == mine.state_dict().keys()
        for key, tensor in mine.state_dict().items():
            if tensor.is_floating_point():
                assert torch.allclose(tensor, state[key], atol=tolerance, rtol=tolerance), key
            else:
                assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("name", ["z-image"])
def test_the_same_batches_are_the_same_run(bases, tiny, tmp_path, name):
    """With gradient checkpointing bit for bit; split into accumulated halves but for rounding."""
    common = {"max_train_steps": 4, "prelaunch_steps": 2, "train_batch_size": 2}

    def trained(folder, **changes):
        job = prepare(of(bases, tiny, name, tmp_path / folder, **common | changes))
        fit(job)
        return job

    plain = trained("plain")
    same_adapters(plain, trained("checkpointed", gradient_checkpointing=True), 0.0)
    same_adapters(plain, trained("halves", gradient_accumulation_steps=2, train_batch_size=1), 1e-3)


@pytest.mark.parametrize("name", ["qwen-image"])
def test_buckets_keep_the_shapes_of_pictures(bases, tiny, tmp_path, name):
    folder = tmp_path / "cat"
    folder.mkdir()
    for i, size in enumerate([(64, 64), (96, 48), (48, 96)]):
        Image.new("RGB", size, (80 * i, 100, 200)).save(folder / f"{i}.png")
    changes = {"aspect_ratio_buckets": True, "resolution": 32, "max_train_steps": 3, "prelaunch_steps": 1}
    job = prepare(of(tmp_path, tiny, name, tmp_path / "out", **changes))
    fit(job)
    sizes = {example.views[0].size for example in job.material.examples}
    assert {(w > h) - (w < h) for w, h in sizes} == {-1, 0, 1}
    assert all(side % job.base.grid == 0 for size in sizes for side in size)


def test_a_guidance_distilled_base_is_told_the_guidance(bases, tiny, tmp_path):
    """1 unless the user gives another one: test_the_loss_is_the_formula_s has it so."""
    lines = []
    prepare(of(bases, tiny, "flux2-dev", tmp_path / "pictures", guidance_scale=3.5), lines).close()
    assert any("that is --training_guidance_scale, which stays at 1" in line for line in lines)
    job = prepare(of(bases, tiny, "flux2-dev", tmp_path / "out", training_guidance_scale=4.0))
    (batch,) = job.batches(3)
    with torch.no_grad():
        loss = job.loss(3).item()
    stock = load_tiny(tiny("flux2-dev"))
    assert loss == pytest.approx(formula("flux2-dev", stock, batch, 4.0), rel=1e-5)
    assert loss != pytest.approx(formula("flux2-dev", stock, batch, 1.0), rel=1e-4)
    job.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 18}, "--resolution is 18; this base takes multiples of 4"),
        ({"train_text_encoder": True}, "--train_text_encoder does not go with FLUX.2 klein: diffusers loads no LoRA"),
        ({"max_sequence_length": 5000}, "--max_sequence_length is 5000"),
    ],
)
def test_settings_that_do_not_fit_a_flow_matching_base(bases, tiny, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        prepare(of(bases, tiny, "flux2-klein", tmp_path / "out", **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 68}, "--resolution is 68; this base takes up to 64 pixels along a side"),
        (
            {"resolution": 52, "aspect_ratio_buckets": True},
            "--resolution is 52 and --aspect_ratio_buckets makes pictures of up to 72 pixels along a side; this base",
        ),
    ],
)
def test_pictures_that_the_transformer_has_no_positions_for(bases, tiny, tmp_path, changes, words):
    """The tiny SD 3 holds 16 x 16 positions of 4 pixels each."""
    with pytest.raises(InputError, match=words):
        prepare(of(bases, tiny, "sd3", tmp_path / "out", **changes))


OVERFIT = {
    "resolution": 8,
    "dash_k": 4,
    "train_batch_size": 32,
    "lora_target": [".*"],  # random weights need more than attention to learn a picture
    "center_crop": True,
    "num_crop_variants": 1,
    "checkpointing_steps": 0,
    "instance_prompt": PROMPT,
}


@pytest.mark.parametrize(
    ("name", "steps", "rank", "rate"),
    [
        ("flux2-klein", 32, 32, 1e-2),
        ("flux2-dev", 32, 32, 1e-2),
        ("z-image", 48, 96, 6e-3),
        ("qwen-image", 48, 96, 1e-2),
        ("flux", 64, 96, 4e-3),
        ("sd3-without-t5", 48, 96, 6e-3),
        ("krea2", 48, 96, 1e-2),
    ],
)
def test_the_stock_pipeline_draws_the_one_picture_that_was_learned(bases, tiny, tmp_path, name, steps, rank, rate):
    """At least twice as near to it, in latents, as the untrained base. A wrong sign or packing fails here; one picture
    alone can be learned with a wrong time, which tests/bases/test_flow_families.py finds."""
    folder = tmp_path / "cat"
    folder.mkdir()
    colours = torch.randint(256, (4, 4, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST).save(folder / "a.png")
    base = save_wide(tiny(name), tmp_path / "base", name)
    changes = {"max_train_steps": steps, "prelaunch_steps": steps - 8, "rank": rank, "learning_rate": rate}
    changes["pretrained_model_name_or_path"] = str(base)
    job = train(of(tmp_path, tiny, name, tmp_path / "out", **OVERFIT | changes))
    picture = job.material.examples[0].views[0].mean
    stock = load_tiny(base)
    before = distance(job.base.family, stock, picture)
    stock.load_lora_weights(str(tmp_path / "out"), weight_name="pytorch_lora_weights.safetensors")
    assert distance(job.base.family, stock, picture) < before / 2


@torch.no_grad()
def distance(family, pipeline, picture):
    """Root mean square between the pipeline's samples and a picture's latents."""
    guided = family.guided(pipeline) or family.name not in ("Z-Image", "Krea 2")  # whose scales begin at 0, not at 1
    how = Sampling(8, 1.0 if guided else 0.0, (8, 8))
    noise = torch.randn(4, *picture.shape, generator=torch.Generator().manual_seed(3))
    inputs = family.join([family.encode(pipeline, [PROMPT], CPU, LENGTH)] * 4)
    drawn = family.sample(pipeline, inputs, noise, how, torch.Generator())
    return (drawn - picture).square().mean().sqrt().item()

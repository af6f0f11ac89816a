"""`eval` and the commands for adapters on flow-matching bases, checked by the stock pipelines and by hand."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dash_vision.__main__ import main as dash_vision
from dash_vision.files.native import read_native, write_native
from dash_vision.runs.seeds import stream
from eval.__main__ import main
from eval.bases import load_base
from eval.figure.page import TILE
from eval.runs import read_run
from eval.sampling import generate, move
from tests.support.dreambooth import settings, train
from tests.support.pictures import save_pictures
from tests.support.tiny import load_tiny

FAMILIES = ("flux2-klein", "z-image", "sd3")
LORA = "pytorch_lora_weights.safetensors"
every_family = pytest.mark.parametrize("name", FAMILIES)
LENGTH = 32


def train_on(base, root, name):
    options = {"max_train_steps": 2, "prelaunch_steps": 1, "resolution": 16, "num_crop_variants": 1}
    options |= {"learning_rate": 0.1, "guidance_scale": 3.0, "max_sequence_length": LENGTH, "train_batch_size": 1}
    train(settings(root, root / name, pretrained_model_name_or_path=str(base), **options))


@pytest.fixture(scope="module")
def families(tiny, tmp_path_factory):
    """Folder of cat/ and of a launched run on each tiny base; to be read only."""
    root = tmp_path_factory.mktemp("families")
    save_pictures(root / "cat")
    for name in FAMILIES:
        train_on(tiny(name), root, name)
    return root


def figure(families, name, out, *more):
    words = ["figure", "--subject", str(families / "cat"), f"--adapter=dash={families / name}", *more]
    return main([*words, "--prompts", "a photo of {}", "a {} in the snow", "--device", "cpu", "-o", str(out)])


def by_hand(pipeline, shape, prompt, number):
    """A picture of the stock pipeline from the noise of (seed 0, number), of that shape [C, h, w]."""
    noise = torch.randn(shape, generator=stream(0, "sample", number))[None]
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "width": 16, "height": 16}
    return pipeline(prompt=prompt, latents=noise, max_sequence_length=LENGTH, **options).images[0]


@every_family
def test_a_tile_is_the_stock_pipeline_s_picture(families, tiny, tmp_path, monkeypatch, name):
    """Of the base and of the adapter, as diffusers draws from the same noise; and the page is made of these."""
    import eval.figure.make as module

    drawn, original = [], module.draw
    monkeypatch.setattr(module, "draw", lambda sampled: drawn.extend(sampled) or original(sampled))
    assert figure(families, name, tmp_path / "f.png") == 0
    (block,) = drawn
    stock = load_tiny(tiny(name))
    channels = {"flux2-klein": (32, 4, 4), "z-image": (16, 8, 8), "sd3": (16, 8, 8)}[name]
    untrained = [by_hand(stock, channels, prompt, i) for i, prompt in enumerate(block.prompts)]
    stock.load_lora_weights(str(families / name), weight_name=LORA)
    trained = [by_hand(stock, channels, prompt, i) for i, prompt in enumerate(block.prompts)]
    assert block.prompts == ["a photo of sks cat", "a sks cat in the snow"]
    for tiles, base, dash in zip(block.tiles, untrained, trained, strict=True):
        assert apart(tiles[0], base) <= 1
        assert apart(tiles[1], dash) <= 1
        assert apart(base, dash) > 10
    with Image.open(tmp_path / "f.png") as page:
        assert page.width > 4 * TILE
        (story,) = json.loads(page.text["dash-vision"])["blocks"]
    assert (story["guidance_scale"], story["resolution"]) == (3.0, 16)


def apart(first, second):
    return np.abs(np.asarray(first).astype(int) - np.asarray(second)).max()


def test_a_picture_is_the_same_in_every_batch(families):
    base = load_base(read_run(families / "sd3"))
    move(base, "cpu", "float32")
    how = {"num_inference_steps": 2, "guidance_scale": 3.0}
    together = generate(base, ["a cat", "a dog"], 0, [5, 9], 16, how)
    alone = generate(base, ["a dog"], 0, [9], 16, how)
    assert apart(together[1], alone[0]) <= 1


def test_half_precision_draws_nearly_the_same(families, tmp_path):
    pages = []
    for dtype in ("float32", "bfloat16"):
        assert figure(families, "flux2-klein", tmp_path / f"{dtype}.png", "--dtype", dtype) == 0
        with Image.open(tmp_path / f"{dtype}.png") as page:
            pages.append(np.asarray(page.convert("RGB").crop((0, 0, page.width, TILE))).astype(float))
    assert 0 < np.sqrt(np.square(pages[0] - pages[1]).mean()) < 12


@every_family
def test_directions_are_of_the_denoiser_s_own_layers(families, tiny, tmp_path, monkeypatch, name):
    """Change rates |u_i^T dW v_i| / (sigma_i + eps) of the stock transformer's weights, by numpy; dW is the low-rank
    part of the file for diffusers, its first rows."""
    import eval.directions.analysis as module

    panels, original = [], module.draw
    monkeypatch.setattr(module, "draw", lambda p, *a, **o: panels.extend(p) or original(p, *a, **o))
    assert main(["directions", str(families / name), "--draws", "20", "-o", str(tmp_path / "d.png")]) == 0
    weights, lora = load_tiny(tiny(name)).transformer.state_dict(), load_file(families / name / LORA)
    whole = [panel for panel in panels if panel.title == "Change rates, whole spectrum"]
    assert len(whole) == 3
    for panel in whole:
        U, sigma, V = np.linalg.svd(weights[f"{panel.note}.weight"].double().numpy(), full_matrices=False)
        A = lora[f"transformer.{panel.note}.lora_A.weight"][:2].double().numpy()
        B = lora[f"transformer.{panel.note}.lora_B.weight"][:, :2].double().numpy()
        expected = np.abs(np.diag(U.T @ B @ A @ V.T)) / (sigma + 1e-6)
        (trained,) = (series for series in panel.series if series.name == "trained")
        assert np.allclose([rate for _, rate in trained.points], expected, rtol=1e-3, atol=1e-6 * expected.max())


@every_family
def test_inspect_names_the_layers_and_the_base(families, tiny, capsys, name):
    capsys.readouterr()
    assert dash_vision(["inspect", str(families / name / "dash_adapter.safetensors")]) == 0
    said = capsys.readouterr().out
    keys = [key for key in load_file(families / name / LORA) if key.endswith(".lora_A.weight")]
    layers = {key.removeprefix("transformer.").removesuffix(".lora_A.weight") for key in keys}
    assert layers
    assert all(f"  {layer} " in said for layer in layers)
    assert f"transformer: {len(layers)} layers, rank 2" in said
    assert f"base: {tiny(name)}" in said


@every_family
def test_merge_writes_the_pipeline_with_the_update_in_its_denoiser(families, tiny, tmp_path, capsys, name):
    """W + (alpha / r) B A + U diag(dsigma) V, which is B' A' of the file for diffusers; all else as it was."""
    out = tmp_path / "merged"
    assert dash_vision(["merge", str(families / name), str(out)]) == 0
    assert "in its transformer" in capsys.readouterr().out
    before, lora = load_tiny(tiny(name)), load_file(families / name / LORA)
    after = DiffusionPipeline.from_pretrained(out)
    changed = set()
    for part in ("transformer", "vae", "text_encoder"):
        theirs = getattr(after, part).state_dict()
        for key, W in getattr(before, part).state_dict().items():
            layer = f"{part}.{key.removesuffix('.weight')}"
            update = 0.0
            if f"{layer}.lora_A.weight" in lora:
                update = lora[f"{layer}.lora_B.weight"].double() @ lora[f"{layer}.lora_A.weight"].double()
                changed.add(layer)
            assert (theirs[key].double() - (W.double() + update)).abs().max() < 1e-6, key
    assert len(changed) == len(lora) // 2
    assert type(after) is type(before)
    assert dash_vision(["merge", str(families / name), str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_merge_keeps_the_number_format_of_the_base_and_rounds_once(families, tiny, tmp_path, capsys):
    """Rounding to the 8 significant bits of bfloat16 once moves a sum by at most 2^-8 of itself."""
    base = load_tiny(tiny("z-image"), torch_dtype=torch.bfloat16)
    base.vae.float()
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "cat").symlink_to(families / "cat")
    train_on(tmp_path / "base", tmp_path, "run")
    lora = load_file(tmp_path / "run" / LORA)
    for words, name in (([], "bfloat16"), (["--dtype", "fp32"], "float32")):
        assert dash_vision(["merge", str(tmp_path / "run"), str(tmp_path / name), *words]) == 0
        assert f"in its transformer ({name})" in capsys.readouterr().out
        merged = load_file(tmp_path / name / "transformer/diffusion_pytorch_model.safetensors")
        dtype = getattr(torch, name)
        for key, W in base.transformer.state_dict().items():
            down = lora.get(f"transformer.{key.removesuffix('.weight')}.lora_A.weight")
            up = lora.get(f"transformer.{key.removesuffix('.weight')}.lora_B.weight")
            exact = W.double() + (0 if down is None else up.double() @ down.double())
            assert merged[key].dtype == dtype
            bound = exact.abs() * (2**-8 if name == "bfloat16" else 0) + 1e-6
            assert ((merged[key].double() - exact).abs() <= bound).all(), key
        vae = load_file(tmp_path / name / "vae/diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in vae.values()} == {torch.float32}


def test_merge_refuses_another_base(families, tiny, tmp_path, capsys):
    words = ["merge", str(families / "sd3"), str(tmp_path / "out"), "--base", str(tiny("z-image"))]
    assert dash_vision(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "was trained on another kind of model" in said
    assert not (tmp_path / "out").exists()


def test_export_writes_the_kohya_file_that_the_trainer_wrote(families, tmp_path):
    native = families / "flux2-klein" / "dash_adapter.safetensors"
    assert dash_vision(["export", str(native), str(tmp_path / "kohya"), "--to", "kohya"]) == 0
    (mine,), (theirs,) = ((p / "kohya").glob("*") for p in (tmp_path, families / "flux2-klein"))
    mine, theirs = load_file(mine), load_file(theirs)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("name", ["z-image", "sd3"])
@pytest.mark.parametrize("noted", [True, False])
def test_export_refuses_a_kohya_file_that_no_program_would_read(families, tmp_path, capsys, name, noted):
    """SD 3 calls layers as FLUX does. A file of an earlier version notes no family."""
    native = families / name / "dash_adapter.safetensors"
    if not noted:
        write_native(read_native(native), tmp_path / "old.safetensors", {})
        native = tmp_path / "old.safetensors"
    assert dash_vision(["export", str(native), str(tmp_path / "kohya"), "--to", "kohya"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "kohya" in said
    assert "diffusers" in said
    assert not (tmp_path / "kohya").exists()


@every_family
def test_export_to_diffusers_is_the_trainer_s_file(families, tmp_path, name):
    native = families / name / "dash_adapter.safetensors"
    assert dash_vision(["export", str(native), str(tmp_path / "out"), "--to", "diffusers"]) == 0
    mine, theirs = load_file(tmp_path / "out" / LORA), load_file(families / name / LORA)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)

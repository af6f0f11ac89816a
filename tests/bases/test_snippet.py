"""The lines of Python in the model card load the very base that a run had."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from dash_vision.bases import identity
from dash_vision.bases.loading import load_base
from dash_vision.bases.noise import DDPM
from dash_vision.bases.snippet import loading_lines
from dash_vision.miniature import FLOW, MINIATURE
from tests.support.single_file import save_single_file


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A folder with another VAE, as a folder and as a file, a single file with marks, and a base in fp16."""
    root = tmp_path_factory.mktemp("made")
    vae = AutoencoderKL.from_pretrained(tiny("sdxl-v") / "vae")
    torch.manual_seed(5)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    vae.save_pretrained(root / "vae")
    save_file(vae.state_dict(), root / "vae.safetensors")
    base = load_base(str(tiny("sdxl-v")))
    base.pipeline.save_pretrained(root / "fp16", variant="fp16")
    whole = load_file(save_single_file(base.pipeline, root / "plain.safetensors"))
    save_file(whole | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, root / "marked.safetensors")
    return root


CASES = {
    "plain": {},
    "variant": {"name": "MADE/fp16", "variant": "fp16"},
    "prediction": {"prediction_type": "epsilon"},
    "vae folder": {"vae": "MADE/vae"},
    "vae file": {"vae": "MADE/vae.safetensors"},
    "file with marks": {"name": "MADE/marked.safetensors", "single_file_config": "BASE"},
    "file, prediction and vae": {
        "name": "MADE/plain.safetensors",
        "single_file_config": "BASE",
        "prediction_type": "v_prediction",
        "zero_terminal_snr": True,
        "vae": "MADE/vae.safetensors",
    },
}


def same(base, pipe):
    """Every network, and the noise process, that the pipeline has."""
    expected = base.identity()
    for name in base.components():
        assert identity.of_network(getattr(pipe, name)) == expected[name], name
    assert identity.of_values(DDPM.of(pipe.scheduler)) == expected["noise process"]
    assert type(pipe.scheduler) is type(base.pipeline.scheduler)
    assert pipe.scheduler.config.timestep_spacing == base.pipeline.scheduler.config.timestep_spacing


@pytest.mark.parametrize("case", CASES)
def test_the_lines_load_what_the_run_had(tiny, made, case):
    folder = str(tiny("sdxl-v"))
    places = {"BASE": folder, "MADE": str(made)}
    options = {"name": folder, **CASES[case]}
    for key, value in options.items():
        for word, place in places.items():
            options[key] = value = value.replace(word, place) if isinstance(value, str) else value
    base, scope = load_base(**options), {}
    exec(compile("\n".join(loading_lines(base)), "card", "exec"), scope)
    same(base, scope["pipe"])


@pytest.mark.parametrize("name", [MINIATURE, FLOW])
def test_the_lines_of_an_embedded_base_load_it(name):
    base, scope = load_base(name), {}
    exec(compile("\n".join(loading_lines(base)), "card", "exec"), scope)
    assert (base.embedded, base.resolution, base.specification["name"]) == (True, 64, name)
    expected = base.identity()
    assert type(scope["pipe"]) is type(base.pipeline)
    for part in base.components():
        assert identity.of_network(getattr(scope["pipe"], part)) == expected[part], part


def test_parts_that_a_folder_lacks_are_left_out(bases, tmp_path):
    folder = shutil.copytree(bases / "sd", tmp_path / "base")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    lines = loading_lines(load_base(str(folder)))
    assert lines[-1].endswith(", feature_extractor=None)")
    exec(compile("\n".join(lines), "card", "exec"), {})


def test_revisions_are_told(bases):
    base = load_base(str(bases / "sd"))
    base.specification |= {"name": "someone/base", "revision": "abc", "vae": "someone/vae", "vae_revision": "def"}
    assert loading_lines(base)[1:] == [
        "vae = AutoencoderKL.from_pretrained('someone/vae', revision='def')",
        "pipe = StableDiffusionPipeline.from_pretrained('someone/base', vae=vae, revision='abc')",
    ]

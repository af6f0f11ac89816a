"""What a base says of its noise process: marks of single files, flags, and zero terminal SNR."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from dash_vision.bases.loading import load_base
from dash_vision.bases.noise import denoising_loss
from dash_vision.bases.snippet import loading_lines
from dash_vision.files.errors import InputError
from tests.support.single_file import save_single_file


@pytest.fixture(scope="module")
def files(bases, tmp_path_factory):
    """The tensors of a single file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    return {
        kind: load_file(save_single_file(load_base(str(bases / kind)).pipeline, folder / f"{kind}.safetensors"))
        for kind in ("sd", "sdxl")
    }


def marked(bases, files, folder, kind, marks, metadata=None, **options):
    path = folder / "marked.safetensors"
    save_file(files[kind] | {mark: torch.zeros(0) for mark in marks}, path, metadata)
    return load_base(str(path), single_file_config=str(bases / kind), **options)


def said(base):
    config = base.pipeline.scheduler.config
    return config.prediction_type, bool(config.rescale_betas_zero_snr), config.timestep_spacing


# -- single files


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([], ("epsilon", False, "leading")),
        (["v_pred"], ("v_prediction", False, "leading")),
        (["v_pred", "ztsnr"], ("v_prediction", True, "trailing")),
        (["ztsnr"], ("epsilon", False, "leading")),
    ],
)
def test_a_files_marks_are_read_as_comfyui_does(bases, files, tmp_path, kind, marks, expected):
    assert said(marked(bases, files, tmp_path, kind, marks)) == expected


def test_a_flag_goes_before_the_marks(bases, files, tmp_path):
    base = marked(bases, files, tmp_path, "sdxl", ["v_pred", "ztsnr"], prediction_type="epsilon")
    assert said(base) == ("epsilon", False, "leading")
    base = marked(bases, files, tmp_path, "sdxl", ["ztsnr"], prediction_type="v_prediction")
    assert said(base) == ("v_prediction", True, "trailing")


def test_the_header_of_a_file_counts_where_it_has_no_marks(bases, files, tmp_path):
    header = {"modelspec.prediction_type": "v"}
    assert said(marked(bases, files, tmp_path, "sdxl", [], header))[0] == "v_prediction"


@pytest.mark.parametrize("marks", [["edm_mean", "edm_std"], ["edm_vpred.sigma_max", "edm_vpred.sigma_min"]])
def test_files_of_edm_are_refused(bases, files, tmp_path, marks):
    with pytest.raises(InputError, match=f"is marked {marks[0]}: it has a noise process of its own"):
        marked(bases, files, tmp_path, "sdxl", marks)


class File:
    """What a family asks of a single file, as safetensors.safe_open gives it."""

    def __init__(self, tensors):
        self.tensors = tensors

    def keys(self):
        return list(self.tensors)

    def metadata(self):
        return None

    def get_tensor(self, key):
        return self.tensors[key]

    def get_slice(self, key):
        return self

    def get_shape(self):
        return [320, 1024]


@pytest.mark.parametrize(("spread", "prediction"), [(0.03, "epsilon"), (0.12, "v_prediction")])
def test_a_file_of_stable_diffusion_2_is_told_by_the_spread_of_a_bias(bases, spread, prediction):
    """diffusers takes every such file for 2.1 at 768 pixels, which predicts v; 2.1-base predicts the noise."""
    family = load_base(str(bases / "sd")).family
    tensors = {
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(1),
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([spread, -spread]),
    }
    assert family.marks(File(tensors), configured=False).prediction_type == prediction
    assert family.marks(File(tensors), configured=True).prediction_type is None


# -- flags and samplers


@pytest.mark.parametrize(
    ("sampler", "used"),
    [("DDIMScheduler", DDIMScheduler), ("PNDMScheduler", EulerDiscreteScheduler)],
)
def test_the_sampler_of_a_zero_terminal_snr_begins_at_pure_noise(bases, tmp_path, sampler, used):
    """One that does not know of it is replaced: it would begin where the denoiser was never trained."""
    base = shutil.copytree(bases / "sd", tmp_path / "base")
    for file in (base / "model_index.json", base / "scheduler/scheduler_config.json"):
        file.write_text(file.read_text().replace("DDIMScheduler", sampler))
    loaded = load_base(str(base), prediction_type="v_prediction", zero_terminal_snr=True)
    assert said(loaded) == ("v_prediction", True, "trailing")
    assert type(loaded.pipeline.scheduler) is used
    loaded.pipeline.scheduler.set_timesteps(4)
    assert loaded.pipeline.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert loaded.specification["zero_terminal_snr"]
    assert load_base(**loaded.specification).identity() == loaded.identity()


def with_mark(bases, folder, sampler, prediction):
    """The base `sd` with another sampler, whose files say themselves that it was trained up to pure noise."""
    base = shutil.copytree(bases / "sd", folder)
    for file in (base / "model_index.json", base / "scheduler/scheduler_config.json"):
        file.write_text(file.read_text().replace("DDIMScheduler", sampler))
    config = json.loads(file.read_text()) | {"rescale_betas_zero_snr": True, "prediction_type": prediction}
    file.write_text(json.dumps(config))
    return str(base)


@pytest.mark.parametrize("sampler", ["PNDMScheduler", "HeunDiscreteScheduler", "DEISMultistepScheduler"])
def test_a_sampler_that_ignores_the_bases_own_mark_is_replaced_and_the_card_says_so(bases, tmp_path, sampler):
    loaded, scope = load_base(with_mark(bases, tmp_path / "base", sampler, "v_prediction")), {}
    assert said(loaded) == ("v_prediction", True, "trailing")
    assert loaded.note == f"its {sampler} cannot draw up to pure noise, so samples are drawn by EulerDiscreteScheduler"
    exec(compile("\n".join(loading_lines(loaded)), "card", "exec"), scope)
    drawn_by = scope["pipe"].scheduler
    assert type(drawn_by) is EulerDiscreteScheduler
    assert torch.equal(drawn_by.alphas_cumprod, loaded.pipeline.scheduler.alphas_cumprod)
    assert loaded.noise().alphas_cumprod[-1] == 0
    drawn_by.set_timesteps(4)
    assert drawn_by.timesteps.tolist() == [999, 749, 499, 249]


def test_pure_noise_and_epsilon_contradict_each_other(bases, tmp_path):
    with pytest.raises(InputError, match="which pure noise says nothing about; add --prediction_type v_prediction"):
        load_base(with_mark(bases, tmp_path / "base", "PNDMScheduler", "epsilon"))


def test_a_zero_terminal_snr_is_of_bases_that_predict_v(bases):
    with pytest.raises(InputError, match="add --prediction_type v_prediction"):
        load_base(str(bases / "sd"), zero_terminal_snr=True)


def rescaled(betas):
    """Algorithm 1 of arXiv 2305.08891, in float64: abar whose root is shifted to 0 at the end and scaled back."""
    root = np.sqrt(np.cumprod(1 - betas))
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@pytest.mark.parametrize("time", [0, 500, 998, 999])
def test_the_loss_up_to_pure_noise_is_the_papers(bases, time):
    base = load_base(str(bases / "sd"), prediction_type="v_prediction", zero_terminal_snr=True)
    config = json.loads((bases / "sd/scheduler/scheduler_config.json").read_text())
    roots = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000)
    abar = rescaled(roots**2)[time]
    assert time != 999 or abar == 0
    z, noise, predicted = torch.randn(3, 2, 4, 5, 5, dtype=torch.float64)
    process, times = base.noise(), torch.full((2,), time)
    noisy = process.noisy(z.float(), noise.float(), times)
    torch.testing.assert_close(noisy.double(), abar**0.5 * z + (1 - abar) ** 0.5 * noise, atol=3e-5, rtol=0)
    v = abar**0.5 * noise - (1 - abar) ** 0.5 * z
    expected = ((predicted - v) ** 2).mean((1, 2, 3))
    target, weights = process.target(z.float(), noise.float(), times), process.weights(times)
    loss = denoising_loss(predicted.float(), target, weights)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)

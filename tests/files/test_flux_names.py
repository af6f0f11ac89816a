"""FLUX adapters by the names of FLUX's own code, through diffusers' converters and in the stock pipeline."""

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux2_lora_to_diffusers,
    _convert_kohya_flux_lora_to_diffusers,
)
from safetensors.torch import load_file

from dash_vision.core.adapter import inject
from dash_vision.core.config import DashConfig
from dash_vision.core.loading import export_lora
from dash_vision.files.flux_names import fuse, unnamed
from tests.support.flow import VELOCITIES
from tests.support.tiny import load_tiny

RANK = 3


def factors(module, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, columns, generator=generator), torch.randn(rows, RANK, generator=generator)


# (out, in) of the layers of a block of FLUX.1, of which diffusers' converter takes no other width, and of FLUX.2.
D = 3072
FLUX_1 = {f"transformer_blocks.2.attn.{name}": (D, D) for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")}
FLUX_1 |= {f"transformer_blocks.2.attn.add_{name}_proj": (D, D) for name in "qkv"}
FLUX_1 |= {f"transformer_blocks.0.{ff}.net.0.proj": (4 * D, D) for ff in ("ff", "ff_context")}
FLUX_1 |= {f"transformer_blocks.0.{ff}.net.2": (D, 4 * D) for ff in ("ff", "ff_context")}
FLUX_1 |= {f"single_transformer_blocks.1.attn.to_{name}": (D, D) for name in "qkv"}
FLUX_1 |= {"single_transformer_blocks.1.proj_mlp": (4 * D, D), "single_transformer_blocks.1.proj_out": (D, 5 * D)}
FLUX_2 = {name: (32, 32) for name in FLUX_1 if name.startswith("transformer_blocks.2")}
FLUX_2 |= {f"transformer_blocks.0.{ff}.linear_in": (192, 32) for ff in ("ff", "ff_context")}
FLUX_2 |= {f"transformer_blocks.0.{ff}.linear_out": (32, 96) for ff in ("ff", "ff_context")}
FLUX_2 |= {
    "single_transformer_blocks.1.attn.to_qkv_mlp_proj": (288, 32),
    "single_transformer_blocks.1.attn.to_out": (32, 128),
}
FEW = ("transformer_blocks.2.attn.to_k", "single_transformer_blocks.1.attn.to_v")


@pytest.mark.parametrize(
    ("shapes", "convert"),
    [
        (FLUX_1, _convert_kohya_flux_lora_to_diffusers),
        ({name: FLUX_1[name] for name in FEW}, _convert_kohya_flux_lora_to_diffusers),
        (FLUX_2, _convert_kohya_flux2_lora_to_diffusers),
    ],
)
def test_diffusers_converter_gives_the_layers_back(shapes, convert):
    layers = {name: factors(name, *shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    written = {}
    for name, (down, up) in fuse(layers).items():
        written |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}
        written[f"lora_unet_{name}.alpha"] = torch.tensor(float(len(down)))
    back = convert(written)
    for name, (down, up) in layers.items():
        A, B = (back.pop(f"transformer.{name}.lora_{part}.weight") for part in "AB")
        x = torch.randn(A.shape[1], 5)
        assert torch.allclose(B @ (A @ x), up @ (down @ x), rtol=1e-4, atol=1e-3), name
    # What was not trained is there, and does nothing.
    assert all(not tensor.any() for key, tensor in back.items() if key.endswith("lora_B.weight"))


@pytest.mark.parametrize("name", ["flux2-klein", "flux2-dev"])
def test_the_file_is_the_adapter_in_the_stock_pipeline(tiny, tmp_path, name):
    """Trained numbers in every layer, before and after the launch."""
    ours, stock = load_tiny(tiny(name)), load_tiny(tiny(name))
    targets = r"(single_)?transformer_blocks\.\d+\.(attn|ff|ff_context)\..*"
    adapter = inject(ours.transformer, DashConfig(rank=2, dash_k=3, alpha=4, target=targets))
    with torch.no_grad():
        for key, parameter in adapter.named_parameters():
            parameter.normal_(std=0.0 if key.endswith(".dsigma") else 0.05)
        adapter.launch()
        for parameter in adapter.parameters():
            parameter.normal_(std=0.05)
    path = export_lora({"transformer": adapter}, tmp_path / "run" / "kohya", format="kohya")
    assert {key.partition(".")[0].rpartition("_blocks_")[0] for key in load_file(path)} == {
        "lora_unet_double",
        "lora_unet_single",
    }
    noisy = torch.randn(1, 32, 4, 4)
    levels, prompts = torch.tensor([0.6]), ["a dog"]
    with torch.no_grad():
        untouched = VELOCITIES[name](stock, noisy, levels, prompts)
        stock.load_lora_weights(str(path.parent), weight_name=path.name)
        loaded = VELOCITIES[name](stock, noisy, levels, prompts)
        trained = VELOCITIES[name](ours, noisy, levels, prompts)
    scale = trained.abs().max()
    assert (loaded - trained).abs().max() < 1e-5 * scale
    assert (untouched - trained).abs().max() > 1e-2 * scale


def test_layers_outside_the_blocks_have_no_name():
    names = ["transformer_blocks.0.attn.to_q", "x_embedder", "transformer_blocks.0.norm1.linear"]
    assert unnamed(names) == names[1:]
    with pytest.raises(ValueError, match="no name for x_embedder"):
        fuse({"x_embedder": factors("x", 4, 4, 0)})

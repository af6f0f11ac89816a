"""Bases of the sizes that were published, as folders of configurations without weights: what `dash-vision plan` reads.

    python -m benchmarks.published DIR                 write sd15/ sdxl/ flux2-klein-4b/ z-image/ qwen-image/ to DIR
    dash-vision plan --pretrained_model_name_or_path DIR/sdxl --budget 12GB

Sizes are those of the published configurations: what a class of diffusers has by itself where nothing is said here.
Tokenizers are the small ones of the tests, which give prompts the same shapes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .exactness import SD15, SDXL

_BLOCKS = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
}
_QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "layer_types": ["full_attention"] * 36,
    "max_window_layers": 36,
    "dtype": "bfloat16",
}
_QWEN25_VL_7B = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "layer_types": ["full_attention"] * 28,
        "max_window_layers": 28,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24], "rope_type": "default", "rope_theta": 1e6},
    },
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    | {"out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]},
    "dtype": "bfloat16",
}


def _clip(width: int, layers: int, heads: int, act: str) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "hidden_act": act}
    return sizes | {"num_attention_heads": heads, "projection_dim": width}


# By base: what makes the folder, and for each network the configuration in the place of the small one's; of those that
# begin with None, everything that is not named is as the class has it.
BASES: dict[str, tuple[str, Mapping[str, tuple[str | None, Mapping[str, Any]]]]] = {
    "sd15": (
        "sd",
        {
            "unet": (None, SD15 | {"sample_size": 64}),
            "vae": (None, _BLOCKS | {"sample_size": 512, "scaling_factor": 0.18215}),
            "text_encoder": ("kept", _clip(768, 12, 12, "quick_gelu")),
        },
    ),
    "sdxl": (
        "sdxl",
        {
            "unet": (None, SDXL | {"sample_size": 128}),
            "vae": (None, _BLOCKS | {"sample_size": 1024, "scaling_factor": 0.13025}),
            "text_encoder": ("kept", _clip(768, 12, 12, "quick_gelu")),
            "text_encoder_2": ("kept", _clip(1280, 32, 20, "gelu")),
        },
    ),
    "flux2-klein-4b": (
        "flux2_klein",
        {
            "transformer": (
                None,
                {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
                | {"guidance_embeds": False},
            ),
            "vae": (None, {}),
            "text_encoder": ("kept", _QWEN3_4B),
        },
    ),
    "z-image": (
        "z_image",
        {
            "transformer": (None, {}),
            "vae": ("kept", _BLOCKS),
            "text_encoder": ("kept", _QWEN3_4B),
        },
    ),
    "qwen-image": (
        "qwen_image",
        {
            "transformer": (None, {"guidance_embeds": False}),
            "vae": (None, {}),
            "text_encoder": ("kept", _QWEN25_VL_7B),
        },
    ),
}


def write(name: str, folder: Path) -> Path:
    """Write the base called `name` to folder/name."""
    from tests.support.bases import save_base
    from tests.support.tiny.flux2 import save_flux2_klein
    from tests.support.tiny.qwen_image import save_qwen_image
    from tests.support.tiny.z_image import save_z_image

    makers: dict[str, Callable[[Path], Any]] = {
        "sd": save_base,
        "sdxl": lambda to: save_base(to, xl=True),
        "flux2_klein": save_flux2_klein,
        "z_image": save_z_image,
        "qwen_image": save_qwen_image,
    }
    kind, networks = BASES[name]
    out = folder / name
    with tempfile.TemporaryDirectory() as temporary:
        makers[kind](Path(temporary))
        for file in Path(temporary).rglob("*"):
            if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
                target = out / file.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    for network, (rest, changes) in networks.items():
        path = out / network / "config.json"
        config = json.loads(path.read_text())
        if rest is None:
            config = {key: value for key, value in config.items() if key.startswith("_")}
        path.write_text(json.dumps(_merged(config, changes), indent=2))
    return out


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(config)
    for key, value in changes.items():
        inner = isinstance(value, Mapping) and isinstance(found.get(key), Mapping) and key.endswith("_config")
        found[key] = _merged(found[key], value) if inner else value
    return found


def make_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write them")
    return parser


def main() -> int:
    """Write all of them."""
    folder = make_parser().parse_args().folder
    for name in BASES:
        print(write(name, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Another VAE in the place of a base's own."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..files.errors import InputError
from . import reasons
from .networks import quiet
from .reasons import explained

# Settings of a VAE that say what its latents are.
_LATENTS = (
    "latent_channels",
    "z_dim",
    "down_block_types",
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
)


def load_vae(own: Any, name: str, revision: str | None, hub: dict[str, Any]) -> Any:
    """Another VAE in the place of the base's `own`. Raises InputError where it cannot be loaded, or where its latents
    are not those that the base was trained on. hub: further arguments of what fetches it."""
    kind, where = type(own), hub | ({"revision": revision} if revision else {})
    bars = quiet() if Path(name).exists() else contextlib.nullcontext()
    with explained(lambda error: f"cannot load the VAE {name}: {reasons.of_vae(name, error)}"), bars:
        if Path(name).is_file():
            return _load_vae_file(own, name)
        config = kind.load_config(name, **where)
        if config.get("_class_name") != kind.__name__:
            raise InputError(f"the VAE {name} is a {config.get('_class_name')}; this base takes a {kind.__name__}")
        vae, report = kind.from_pretrained(
            name,
            torch_dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            variant=reasons.only_variant(Path(name)),
            **where,
        )
    if report["missing_keys"]:
        raise InputError(f"cannot load the VAE {name}: {reasons.missing_tensors('VAE', report['missing_keys'])}")
    for key in _LATENTS:
        given, needed = _plain(getattr(vae.config, key, None)), _plain(getattr(own.config, key, None))
        if given != needed:
            raise InputError(
                f"the VAE {name} has {key} {given}, the base's own has {needed}: its latents are of another kind; give "
                "a VAE that is made for this base"
            )
    return vae


def _load_vae_file(own: Any, name: str) -> Any:
    """A VAE in a single file, which says nothing of its settings: they are those of the base's own."""
    with tempfile.TemporaryDirectory() as folder:
        own.save_config(folder)
        return type(own).from_single_file(name, config=folder, torch_dtype=torch.float32)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value

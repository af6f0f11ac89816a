"""The base of a finished run, loaded again as its record says: for everything that draws with it or merges it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError

from ..files.errors import InputError
from ..files.lora import DIFFUSERS_NAME
from ..runs.record import BaseRecord
from .identity import difference
from .loading import Base, load_again


def load_recorded(
    record: BaseRecord,
    run: Path,
    place: str | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: str | None = None,
) -> Base:
    """The base of the run in the folder `run`. place: where it is now, instead of where it was. dtype, quantize: see
    bases.loading.load_again, which says what is raised."""
    try:
        return load_again(record.specification, place, dtype, quantize)
    except InputError as error:
        raise InputError(f"{error} (of {run}; --base says where its base is now)") from None


def check_recorded(base: Base, record: BaseRecord, run: Path, place: str | None = None) -> list[str]:
    """A note where a base that the user named, at `place`, is not in all its parts the one that a run was trained on.

    Ask before a network of it is cast. Raises InputError where nobody named it: what the run's record names has
    changed since.
    """
    part = difference(record.identity, base.identity())
    if part is None:
        return []
    found = f"{base.name} is not the base that {run} was trained on: its {part} differs"
    if place is None:
        raise InputError(f"{found}; --base says where that base is now, or names another one to use all the same")
    return [f"note: {found}"]


def load_lora(base: Base, run: Path) -> None:
    """Load the adapter of the run in the folder `run` in the base's stock pipeline, as diffusers does. Raises
    InputError."""
    try:
        base.pipeline.load_lora_weights(str(run), weight_name=DIFFUSERS_NAME)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot load {run / DIFFUSERS_NAME} in the base ({reason}); export it anew or make the run again"
        ) from None

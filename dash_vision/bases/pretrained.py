"""The pretrained model that an adapter of transformers' Trainer belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..files.errors import InputError

PLAIN = "adapter_config.json"  # beside the plain LoRA in PEFT's layout; it names the base
# By PEFT's word for the task, the class of transformers that loads a base for it.
_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def load_pretrained(folder: Path, place: str | None = None) -> tuple[Any, torch.dtype]:
    """The base, in float32, of the plain LoRA in `folder`: the model itself, with new heads where the base has none;
    and the dtype in which transformers loads it when it is told none.

    place: a hub id or folder to use instead of the one that the LoRA names. Raises InputError.
    """
    import transformers

    try:
        about: dict[str, Any] = json.loads((folder / PLAIN).read_text(encoding="utf-8"))
        kind = getattr(transformers, _CLASSES.get(about["task_type"], "AutoModel"))
        name = place or about["base_model_name_or_path"]
    except (OSError, KeyError, ValueError):
        raise InputError(f"{folder} has no {PLAIN} that names a base; make the run again") from None
    if not name:
        raise InputError(f"{folder / PLAIN} names no base; name its folder by --base")
    labels = _labels(folder) if kind is transformers.AutoModelForSequenceClassification else None
    said = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it would warn of new heads
    try:
        options = {"num_labels": labels} if labels else {}
        dtype = transformers.AutoConfig.from_pretrained(name).dtype or torch.float32
        return kind.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **options), dtype
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"cannot load the base {name} ({reason}); name its folder by --base") from None
    finally:
        transformers.utils.logging.set_verbosity(said)


def _labels(folder: Path) -> int | None:
    """How many classes the head beside a LoRA tells apart; None where there is no head."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys() if ".lora_" not in key]  # noqa: SIM118
    return min((shape[0] for shape in shapes if len(shape) == 2), default=None)

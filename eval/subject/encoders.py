"""Pictures and prompts as unit vectors, by the backbones of the DreamBooth protocol: CLIP, and a DINO ViT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dash_vision.files.errors import InputError
from dash_vision.miniature import MINIATURE

from ..bases import no_loading_bars
from ..sampling import within_memory
from .prompts import DINO

_BATCH = 32
_INSTEAD = "--device cpu"


class ClipEncoder:
    """CLIP through transformers. name: a hub id, a folder, or MINIATURE for the one the embedded base was made with."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPProcessor

        no_loading_bars()
        self.name = f"CLIP of the {MINIATURE}" if name == MINIATURE else f"CLIP {name}"
        self.device = device
        place: str | Path = name
        if name == MINIATURE:
            from dash_vision.miniature import clip_path

            place = clip_path()
        try:
            self.model: Any = CLIPModel.from_pretrained(place, use_safetensors=True).float().eval()
            self.processor: Any = CLIPProcessor.from_pretrained(place)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"cannot load CLIP from {name} ({reason}); name a folder or a hub id in the local cache by --clip"
            ) from None
        with within_memory(self.name, _INSTEAD):
            self.model.to(device)

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, d], unit rows."""

        def encode(batch: Sequence[Image.Image]) -> Tensor:
            pixels = self.processor(images=list(batch), return_tensors="pt")["pixel_values"]
            return _pooled(self.model.get_image_features(pixel_values=pixels.to(self.device)))

        return _in_batches(pictures, encode)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """[n, d], unit rows; what is beyond the model's length is cut off."""
        length = self.model.config.text_config.max_position_embeddings

        def encode(batch: Sequence[str]) -> Tensor:
            tokens = self.processor.tokenizer(
                list(batch), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).to(self.device)
            features = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            return _pooled(features)

        return _in_batches(texts, encode)


class DinoEncoder:
    """A timm model without its head, with its own resizing and normalisation. name: timm's, or MINIATURE for the ViT
    that ships beside the embedded base. checkpoint: a local .safetensors file of a timm model's weights instead of the
    hub's."""

    def __init__(self, name: str = DINO, checkpoint: str | None = None, device: str = "cpu") -> None:
        self.device = device
        self.name = f"ViT of the {MINIATURE}" if name == MINIATURE else f"timm {name}"
        self.model, self.transform = miniature_vit() if name == MINIATURE else self._timm(name, checkpoint)
        with within_memory(self.name, _INSTEAD):
            self.model.eval().to(device)

    def _timm(self, name: str, checkpoint: str | None) -> tuple[Any, Any]:
        import timm

        if checkpoint and (not Path(checkpoint).is_file() or Path(checkpoint).suffix != ".safetensors"):
            raise InputError(f"--dino_checkpoint is {checkpoint}; it takes a .safetensors file of {name}'s weights")
        local: dict[str, Any] = {"pretrained_cfg_overlay": {"file": checkpoint}} if checkpoint else {}
        try:
            model: Any = timm.create_model(name, pretrained=True, num_classes=0, **local)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"cannot load {name} with its weights through timm ({reason}); give them by --dino_checkpoint, or "
                "leave the column out by --dino none"
            ) from None
        return model, timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, d], unit rows."""

        def encode(batch: Sequence[Image.Image]) -> Tensor:
            return self.model(
                torch.stack([self.transform(picture.convert("RGB")) for picture in batch]).to(self.device)
            )

        return _in_batches(pictures, encode)


def miniature_vit() -> tuple[Any, Any]:
    """The ViT that ships beside the embedded base, without a head, and the transform of its pictures."""
    from timm.data import create_transform

    from dash_vision.bases.backbones import MINIATURE as OF_TIMM
    from dash_vision.bases.backbones import build, describe

    found = describe(OF_TIMM)
    model: Any = build(found, classes=1)
    model.reset_classifier(0)
    size = (3, found.image_size, found.image_size)
    whole = 1.0  # no part of the picture is cut away
    return model, create_transform(
        size, mean=found.mean, std=found.std, interpolation="bicubic", crop_pct=whole, is_training=False
    )


def _in_batches(items: Sequence[Any], encode: Callable[[Sequence[Any]], Tensor]) -> Tensor:
    with torch.no_grad(), within_memory(f"the features of {_BATCH} pictures or prompts at once", _INSTEAD):
        parts = [encode(items[i : i + _BATCH]).float().cpu() for i in range(0, len(items), _BATCH)]
    return torch.nn.functional.normalize(torch.cat(parts).double(), dim=1)


def _pooled(features: Any) -> Tensor:
    """transformers 5 wraps the features, 4 does not."""
    return features if isinstance(features, Tensor) else features.pooler_output

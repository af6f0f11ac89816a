"""Pictures and prompts as unit vectors: by CLIP, by a DINO ViT of timm, and by DINOv2 and its relatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..bases.devices import within_memory
from ..bases.networks import no_loading_bars
from ..files.errors import InputError
from ..miniature import MINIATURE
from .names import CLIP, DINO, DINOV2, NONE

_BATCH = 32
_INSTEAD = "--device cpu"
_FLAG = "--eval_encoders"
# Of transformers: what they say of a picture as a whole stands first among their tokens.
_WITH_CLASS_TOKEN = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")


class PictureEncoder(Protocol):
    """What tells how like two pictures are. name: for the reader of a table."""

    name: str

    def to(self, device: str) -> None:
        """Move it there. Raises InputError where the memory does not suffice."""

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, d], unit rows."""


class _OnDevice:
    """A network that computes features, on a device."""

    name: str
    model: Any
    device: str

    def to(self, device: str) -> None:
        """Move it there. Raises InputError where the memory does not suffice."""
        with within_memory(self.name, _INSTEAD):
            self.model.to(device)
        self.device = device


class ClipEncoder(_OnDevice):
    """CLIP through transformers. name: a hub id, a folder, or MINIATURE for the one the embedded base was made with.
    flag: by which the user named it."""

    def __init__(self, name: str, device: str = "cpu", flag: str = "--clip") -> None:
        from transformers import CLIPModel, CLIPProcessor

        no_loading_bars()
        self.name = f"CLIP of the {MINIATURE}" if name == MINIATURE else f"CLIP {name}"
        place: str | Path = name
        if name == MINIATURE:
            from ..miniature import clip_path

            place = clip_path()
        try:
            self.model = CLIPModel.from_pretrained(place, use_safetensors=True).float().eval()
            self.processor: Any = CLIPProcessor.from_pretrained(place)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"cannot load CLIP from {name} ({reason}); name a folder or a hub id in the local cache by {flag}"
            ) from None
        self.to(device)

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


class DinoEncoder(_OnDevice):
    """A timm model without its head, with its own resizing and normalisation. name: timm's, or MINIATURE for the ViT
    that ships beside the embedded base. checkpoint: a local .safetensors file of a timm model's weights instead of the
    hub's."""

    def __init__(self, name: str = DINO, checkpoint: str | None = None, device: str = "cpu") -> None:
        self.name = f"ViT of the {MINIATURE}" if name == MINIATURE else f"timm {name}"
        self.model, self.transform = miniature_vit() if name == MINIATURE else self._timm(name, checkpoint)
        self.model.eval()
        self.to(device)

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


class HubEncoder(_OnDevice):
    """DINOv2 or another vision transformer through transformers, by its class token. name: a hub id or a folder."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModel

        no_loading_bars()
        self.name = name
        try:
            self.model = AutoModel.from_pretrained(name, use_safetensors=True).float().eval()
            self.processor: Any = AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError, RuntimeError) as error:
            raise _unloadable(name, error) from None
        self.to(device)

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, d], unit rows."""

        def encode(batch: Sequence[Image.Image]) -> Tensor:
            pixels = self.processor(images=[p.convert("RGB") for p in batch], return_tensors="pt")["pixel_values"]
            tokens: Tensor = self.model(pixel_values=pixels.to(self.device)).last_hidden_state
            return tokens[:, 0]

        return _in_batches(pictures, encode)


@dataclass(frozen=True)
class Encoders:
    """What measures pictures. likeness: compares them with each other. text: compares them with prompts."""

    likeness: PictureEncoder | None = None
    text: ClipEncoder | None = None

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Both on a device while inside, and on the CPU after."""
        for encoder in (self.likeness, self.text):
            if encoder is not None:
                encoder.to(str(device))
        try:
            yield
        finally:
            for encoder in (self.likeness, self.text):
                if encoder is not None:
                    encoder.to("cpu")

    @property
    def names(self) -> dict[str, str]:
        """Measure -> the encoder that it comes from."""
        found: dict[str, str] = {}
        if self.likeness is not None:
            found |= dict.fromkeys(("likeness", "drift", "leak"), self.likeness.name)
        return found | ({"adherence": self.text.name} if self.text is not None else {})


def find_encoders(names: Sequence[str], embedded: bool, device: str = "cpu") -> tuple[Encoders, list[str]]:
    """The encoders of these names, and a sentence for each that cannot be had.

    names: hub ids or folders of CLIP and of DINOv2 or its relatives, timm's names, MINIATURE for those of the embedded
    base, or NONE; without any, those of the embedded base where it is the one that draws, else DINOv2 and CLIP. Where
    CLIP alone is named it compares pictures too. Raises InputError for two of one kind.
    """
    wanted = list(names) or ([MINIATURE] if embedded else [DINOV2, CLIP])
    if wanted == [NONE]:
        return Encoders(), []
    pictures: list[PictureEncoder] = []
    texts: list[ClipEncoder] = []
    problems = []
    for name in wanted:
        try:
            if name == MINIATURE:
                pictures.append(DinoEncoder(MINIATURE, device=device))
            kind = MINIATURE if name == MINIATURE else _kind_of(name)
            if kind in (MINIATURE, "clip"):
                texts.append(ClipEncoder(name, device, _FLAG))
            else:
                pictures.append(DinoEncoder(name, device=device) if kind == "timm" else HubEncoder(name, device))
        except InputError as error:
            problems.append(str(error))
    if len(pictures) > 1 or len(texts) > 1:
        raise InputError(
            f"{_FLAG} names {' and '.join(wanted)}, which measure the same; give one that compares pictures (such as "
            f"{DINOV2}) and one CLIP"
        )
    text = texts[0] if texts else None
    return Encoders(pictures[0] if pictures else text, text), problems


def _kind_of(name: str) -> str:
    """ "clip", "timm", or a model type of transformers that has a class token. Raises InputError."""
    import timm
    from transformers import AutoConfig

    if "/" not in name and not Path(name).exists() and timm.is_model(name):
        return "timm"
    try:
        kind = str(AutoConfig.from_pretrained(name).model_type)
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from None
    if kind == "clip" or kind in _WITH_CLASS_TOKEN:
        return kind
    raise InputError(f"{name} is a model of the kind {kind}, which does not compare pictures here; {_accepted()}")


def _unloadable(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:160]
    return InputError(f"cannot load the encoder {name} ({reason}); {_accepted()}")


def _accepted() -> str:
    return f"{_FLAG} takes hub ids or folders of DINOv2 and of CLIP, or {NONE}"


def miniature_vit() -> tuple[Any, Any]:
    """The ViT that ships beside the embedded base, without a head, and the transform of its pictures."""
    from timm.data import create_transform

    from ..bases.backbones import MINIATURE as OF_TIMM
    from ..bases.backbones import build, describe

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

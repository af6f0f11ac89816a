"""The base models: any timm vision transformer by name, or the miniature ViT that this package ships."""

from __future__ import annotations

import difflib
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..files.errors import InputError
from ..miniature import MINIATURE, WEIGHTS
from ..runs.seeds import seed_everything
from . import identity, reasons
from .reasons import explained

MINIATURE_WEIGHTS = WEIGHTS / "vit.safetensors"
MINIATURE_SHAPE: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}

_MEANS = {"imagenet": (0.485, 0.456, 0.406), "half": (0.5, 0.5, 0.5), "none": (0.0, 0.0, 0.0)}
_STDS = {"imagenet": (0.229, 0.224, 0.225), "half": (0.5, 0.5, 0.5), "none": (1.0, 1.0, 1.0)}
# What a checkpoint may hold beyond the trunk: its own classifier, and what pre-training needed.
_LARGEST = 4096  # pixels; above it the positions alone would fill the memory
_BEYOND_TRUNK = ("head", "fc.", "pre_logits", "mask_token", "decoder", "norm.", "fc_norm.")


# How a model sums its tokens up, as timm calls it, by the last layer that this takes: and in words.
_POOLED_BY = {
    "attn_pool.": ("map", "attention"),
    "fc_norm.": ("avg", "the mean of all tokens"),
    "norm.": ("token", "the class token"),
}
POOLS = tuple(pool for pool, _ in _POOLED_BY.values())


@dataclass(frozen=True)
class Backbone:
    """A base model before any weight is loaded: what its input looks like and where its weights come from.

    mean and std are of RGB in 0..1. checkpoint: a local file of weights; random: leave it untrained; revision: of the
    weights on the hub. source: what mean and std were read from. global_pool: one of POOLS, where it is not the model's
    own.
    """

    name: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checkpoint: str | None = None
    random: bool = False
    revision: str | None = None
    source: str = ""
    global_pool: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; Backbone.from_dict is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Backbone:
        """Raises InputError for what describes no base: it comes from a file, and may say anything."""
        try:
            found = cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        except (TypeError, KeyError) as error:
            raise InputError(f"this describes no base model ({error})") from None
        numbers = [*found.mean, *found.std, found.image_size]
        if len(found.mean) != 3 or len(found.std) != 3 or not all(type(n) in (int, float) for n in numbers):
            raise InputError("a base model has three means, three standard deviations and an image size")
        if not all(map(math.isfinite, numbers)) or min(found.std) <= 0 or not 1 <= found.image_size <= _LARGEST:
            raise InputError("its image size, means or standard deviations are out of range")
        texts = (found.checkpoint, found.revision, found.source)
        if type(found.image_size) is not int or not all(isinstance(text, str | None) for text in texts):
            raise InputError("its image size, checkpoint or revision is of the wrong kind")
        if found.global_pool not in (None, *POOLS):
            raise InputError(f"it sums tokens up by {found.global_pool!r}, which is none of {', '.join(POOLS)}")
        if found.name != MINIATURE:
            _check_name(found.name)
        if found.checkpoint:
            _check_file(Path(found.checkpoint))
        return found


def describe(
    name: str,
    image_size: int | None = None,
    normalization: str = "checkpoint",
    checkpoint: str | None = None,
    random: bool = False,
    revision: str | None = None,
    global_pool: str | None = None,
) -> Backbone:
    """The Backbone called `name`; loads nothing.

    A name that timm has renamed becomes the present one, with the weights that it stands for. Raises InputError for an
    unknown name, with near ones, for a checkpoint file that is not there or of a kind that is not read, for a revision
    of weights that are not on the hub, and where nothing says how the input is normalized.
    """
    if checkpoint:
        _check_file(Path(checkpoint))
    if name == MINIATURE:
        native, hub = MINIATURE_SHAPE["img_size"], None
        found = _Normalization(_MEANS["half"], _STDS["half"], MINIATURE)
    else:
        _check_name(name)
        name, info = _present(name)
        found = _normalization(name, info, checkpoint, random or normalization != "checkpoint")
        native, hub = found.size or info.input_size[-1], info.hf_hub_id
    if revision and not hub:
        raise InputError(f"--revision is of weights from the hub, and those of {name} are not from there; leave it out")
    if global_pool and name == MINIATURE:
        raise InputError(f"--global_pool is for timm's models; {MINIATURE} reads its class token: leave it out")
    if normalization != "checkpoint":
        source = f"--normalization {normalization}"
        found = _Normalization(_MEANS[normalization], _STDS[normalization], source)
    size = image_size or native
    return Backbone(name, size, found.mean, found.std, checkpoint, random, revision, found.source, global_pool)


def _present(name: str) -> tuple[str, Any]:
    """The name that timm has now for a model, and what it knows of its weights. Raises InputError for weights that it
    does not have."""
    present = timm.models.get_deprecated_models().get(name) or name
    try:
        return present, timm.get_pretrained_cfg(present)
    except RuntimeError:
        architecture, _, tag = present.partition(".")
        renamed = f" (which {name} was renamed to)" if present != name else ""
        known = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or "none"
        raise InputError(
            f"timm {timm.__version__} has no weights {tag} of {architecture}{renamed}; it has {known}"
        ) from None


class _Normalization(NamedTuple):
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    size: int | None = None  # of the input in pixels, where the source says one


def _normalization(name: str, info: Any, checkpoint: str | None, any_will_do: bool) -> _Normalization:
    """How a model's input is normalized: as the configuration beside the checkpoint says, else as timm says of the
    weights of that name. Raises InputError where timm has none and gives a default."""
    beside = _configuration(Path(checkpoint), info.architecture) if checkpoint else None
    if beside is not None:
        return beside
    if not info.has_weights and not any_will_do and checkpoint:
        raise InputError(
            f"timm publishes no weights of {name} and does not know how the input of {Path(checkpoint).name} is "
            "normalized; give --normalization imagenet, half or none"
        )
    tag = f"{info.architecture}.{info.tag}" if info.tag else name
    return _Normalization(tuple(info.mean), tuple(info.std), f"timm's {tag}")


def _configuration(checkpoint: Path, architecture: str | None) -> _Normalization | None:
    """What the config.json that timm writes beside its weights says; None where there is none for this model."""
    content = reasons.read_json(checkpoint.with_name("config.json"))
    if not isinstance(content, dict) or content.get("architecture") != architecture:
        return None
    values = content.get("pretrained_cfg", content)  # older files have it all on one level
    try:
        mean, std = (tuple(map(float, values[key])) for key in ("mean", "std"))
    except (LookupError, TypeError, ValueError):
        return None
    if not len(mean) == len(std) == 3:
        return None
    return _Normalization(mean, std, str(checkpoint.with_name("config.json")), _size_in(values))


def _size_in(values: dict[str, Any]) -> int | None:
    """The side of the square input that a configuration of timm states; None where it states none."""
    size = values.get("input_size")
    if isinstance(size, list) and len(size) == 3 and type(size[2]) is int and 1 <= size[1] == size[2] <= _LARGEST:
        return size[2]
    return None


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise InputError(f"the name of a model is text, got {name!r}")
    if timm.is_model(name):  # of timm's own: no "hf-hub:" or "local-dir:", which fetch whatever is there
        return
    known = timm.list_models(pretrained=True)
    near = difflib.get_close_matches(name, known, n=3) or difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
    raise InputError(f"timm {timm.__version__} has no model {name!r}; {hint} (or --model {MINIATURE})")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; --checkpoint takes a .safetensors or .npz file")
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(
            f"--checkpoint takes .safetensors, or .npz of Google's ViTs, got {path.name}; pickles (.pth, .pt, .bin) "
            "can run code when they are read: convert it with safetensors.torch.save_file(state_dict, ...)"
        )


def build(backbone: Backbone, classes: int, drop_path: float = 0.0, head_seed: int = 0) -> nn.Module:
    """The model with its weights and a new head of `classes` outputs, in float32 on the CPU.

    The head is drawn from `head_seed` alone (standard deviation 0.02, bias 0), an untrained base from a fixed seed, so
    that both can be made again. Raises InputError when weights cannot be fetched or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        seed_everything(0, "backbone")
        model = (
            _miniature(backbone, classes, drop_path)
            if backbone.name == MINIATURE
            else _timm(backbone, classes, drop_path)
        )
        _check_patches(model, backbone.image_size)
        seed_everything(head_seed, "classifier head")
        for name in head_names(model):
            head = model.get_submodule(name)
            assert isinstance(head, nn.Linear)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
    return model.float()


def _check_patches(model: nn.Module, size: int) -> None:
    """Raises InputError where patches of the model do not cover pictures of `size`: it would cut off the rest."""
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or embed.dynamic_img_pad or size % embed.patch_size[0] == 0:
        return
    side = embed.patch_size[0]
    near = [n for n in (size // side * side, (size // side + 1) * side) if n]
    raise InputError(
        f"--image_size {size} is no multiple of this model's patches of {side} pixels, which would leave out the "
        f"edge of every picture; give {' or '.join(map(str, near))}"
    )


class Normalize(nn.Module):
    """uint8 images [n, 3, s, s] to a model's input: (x / 255 - mean) / std, in float32, on the images' device."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
        self.register_buffer("scale", (1 / (255 * std)).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images.float(), self.scale)


def plain_attention(model: nn.Module) -> None:
    """Let timm's attention compute its products one by one.

    On a CPU PyTorch's fused attention is the slower one for as few tokens as a small picture has: a training step of
    the miniature ViT takes 1.0 times as long with it in float32, 2.3 times in bfloat16.
    """
    attention: Any
    for attention in model.modules():
        if hasattr(attention, "fused_attn"):
            attention.fused_attn = False


def head_names(model: nn.Module) -> list[str]:
    """Names of the classifier's linear layers (a distilled DeiT has two). Raises InputError if there is none."""
    heads = model.get_classifier()  # type: ignore[operator]
    heads = list(heads) if isinstance(heads, tuple | list | nn.ModuleList) else [heads]
    names = [name for name, module in model.named_modules() if any(module is head for head in heads)]
    if not names or not all(isinstance(model.get_submodule(name), nn.Linear) for name in names):
        raise InputError(f"{type(model).__name__} has no linear classifier to train; choose a ViT, DeiT, DINOv2 or EVA")
    return names


def _miniature(backbone: Backbone, classes: int, drop_path: float) -> nn.Module:
    shape = {**MINIATURE_SHAPE, "img_size": backbone.image_size}
    model = VisionTransformer(**shape, num_classes=classes, drop_path_rate=drop_path)
    if not backbone.random:
        file = Path(backbone.checkpoint) if backbone.checkpoint else MINIATURE_WEIGHTS
        if not file.is_file():
            raise InputError(
                f"the miniature's weights are not at {file}; train them with `python -m dash_vision.miniature "
                "build --stages vit --work DIR`, or install the package again"
            )
        _load_safetensors(model, file)
    return model


def _timm(backbone: Backbone, classes: int, drop_path: float) -> nn.Module:
    info = timm.get_pretrained_cfg(backbone.name)
    native = info.input_size[-1] if info else None
    options: dict[str, Any] = {"num_classes": classes, "drop_path_rate": drop_path or None}
    if native != backbone.image_size:
        options["img_size"] = backbone.image_size
    if backbone.global_pool:
        options["global_pool"] = backbone.global_pool
    fetch = not (backbone.random or backbone.checkpoint)
    if backbone.revision and info:
        options["pretrained_cfg_overlay"] = {"hf_hub_id": f"{info.hf_hub_id}@{backbone.revision}"}
    with explained(lambda error: _no_model(backbone, error, fetch, options)), _silent_timm():
        model = timm.create_model(backbone.name, pretrained=fetch, **options)
    if backbone.checkpoint:
        _load_checkpoint(model, Path(backbone.checkpoint))
    return model


@contextmanager
def _silent_timm() -> Iterator[None]:
    """timm warns that the classifier of the checkpoint is left out, which is meant."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _no_model(backbone: Backbone, error: Exception, fetch: bool, options: dict[str, Any]) -> str:
    """Why timm could not build the model, or not load its weights."""
    name, general = backbone.name, reasons.needed(error) or reasons.disk(error)
    if general:
        return f"cannot build {name}: {general}"
    hub = reasons.of_hub(error)
    if backbone.global_pool and "state_dict" in str(error):
        pool = f"--global_pool {backbone.global_pool}"
        return f"the published weights of {name} are not of a model with {pool}; leave it out"
    if isinstance(error, TypeError | AssertionError) or not fetch:
        return (
            f"{name} cannot be built with {', '.join(k for k in options if options[k] is not None)} "
            f"({reasons.quoted(error)}); choose a vision transformer, or its own --image_size and --drop_path 0"
        )
    return (
        f"could not fetch the weights of {name} from the Hugging Face hub ({hub or reasons.quoted(error)}). Check the "
        f"network; or download the file where there is one and give it with --checkpoint FILE (.safetensors or .npz); "
        f"or use --model {MINIATURE}, which needs no download"
    )


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    if path.suffix == ".safetensors":
        _load_safetensors(model, path)
        return
    read_npz = getattr(model, "load_pretrained", None)
    if read_npz is None:
        raise InputError(f"{path.name}: only VisionTransformer models read .npz; this one is a {type(model).__name__}")
    with explained(lambda error: f"{path} holds no weights of this model ({type(error).__name__}: {error})"):
        read_npz(str(path))  # of a foreign .npz it fails wherever the first missing key or odd shape is met


def _load_safetensors(model: nn.Module, path: Path) -> None:
    """Weights of the trunk from a timm state dict or what timm converts to one; every trunk tensor has to be there."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no complete .safetensors file ({error}); download it again") from None
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    with explained(lambda error: f"{path} holds no weights of this model: {reasons.quoted(error)}"):
        state = convert(dict(state), model) if convert else state
        heads = tuple(f"{name}." for name in head_names(model))
        state = {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
        outcome = model.load_state_dict(state, strict=False)
    missing = [key for key in outcome.missing_keys if not key.startswith(heads)]
    strange = [key for key in outcome.unexpected_keys if not key.startswith(_BEYOND_TRUNK)]
    if missing or strange:
        raise InputError(
            _pooled_otherwise(path, model, state, [*missing, *strange])
            or f"{path} holds no weights of this model: {len(missing)} tensors are missing in it "
            f"({', '.join(missing[:2])}), {len(strange)} are unknown ({', '.join(strange[:2])}); check --model"
        )


def _pooled_otherwise(path: Path, model: nn.Module, state: dict[str, Tensor], different: list[str]) -> str | None:
    """What to say of a file whose model sums its tokens up in another way than this one; None where that is not all
    that differs."""
    if not all(key.startswith(tuple(_POOLED_BY)) for key in different):
        return None
    file, here = _pooling(state), _pooling(model.state_dict())
    if file is None or here is None or file == here:
        return None
    (pool, read), (_, reads) = _POOLED_BY[file], _POOLED_BY[here]
    return (
        f"the classifier of {path} reads {read} (its last layer is {file[:-1]}), this model's {reads} ({here[:-1]}); "
        f"give --global_pool {pool}, or the --model that the file is of"
    )


def _pooling(state: Iterable[str]) -> str | None:
    """The beginning of the names of the last layer before the classifier; None for one that is not known."""
    return next((start for start in _POOLED_BY if any(key.startswith(start) for key in state)), None)


def weights_digest(backbone: Backbone) -> str:
    """Digest of the weights of a base without its head: every byte of them is read, once. Raises as `build`."""
    file = Path(backbone.checkpoint).stat() if backbone.checkpoint else None
    return _digest(backbone, (file.st_mtime_ns, file.st_size) if file else ())


@cache
def _digest(backbone: Backbone, stamp: tuple[int, ...]) -> str:
    """stamp: tells files at one place apart. Of the model's own size: positions that are resampled to another one
    differ in their last bits from machine to machine."""
    own = MINIATURE_SHAPE["img_size"] if backbone.name == MINIATURE else _present(backbone.name)[1].input_size[-1]
    model = build(replace(backbone, image_size=own), 1)
    heads = tuple(f"{name}." for name in head_names(model))
    return identity.of_tensors(tensor for name, tensor in model.state_dict().items() if not name.startswith(heads))

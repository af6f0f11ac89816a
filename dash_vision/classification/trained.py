"""What a run leaves behind to be used: writing it, loading it, merging it into a plain timm checkpoint, predicting.

    dash, lora             dash_adapter.safetensors (native, head included) and peft/ (plain LoRA for stock PEFT)
    linear, bitfit, full   trained.safetensors: the trained tensors by their names in the timm model
    peft-...               peft/, as PEFT's save_pretrained writes it

With --keep_every, dash and lora leave adapters/step-000064.safetensors and so on too, native files of earlier steps.

Each carries a note of the base, the task and the class names, so that a file is all one has to keep.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..bases.backbones import Backbone, Normalize, build, weights_digest
from ..core.adapter import fold_in
from ..core.loading import adapter_state, load_adapter
from ..core.sharding import whole
from ..files.atomic import write_json
from ..files.container import Kind, kind_of, read_container, read_content, write_container
from ..files.errors import InputError
from ..files.lora import export_states
from ..files.native import ADAPTER, NATIVE_NAME, AdapterState, read_notes, write_native
from ..files.places import from_root
from ..pictures.decode import Picture, open_picture
from ..pictures.folder import picture_notes
from .decode import to_tensor
from .methods import Tuned

TRAINED_NAME = "trained.safetensors"
PEFT_FOLDER = "peft"
NOTE_NAME = "dash_vision.json"
KEPT_FOLDER = "adapters"  # of earlier steps, by keep_adapter
TRAINED = Kind("classifier", "trained tensors of train_vtab.py")
_NOTE = "dash_vision_vtab"  # among the notes of a native adapter


class Trained(NamedTuple):
    """A trained classifier in evaluation mode, float32, and its note (task, classes, backbone, ...)."""

    model: nn.Module
    about: dict[str, Any]

    @property
    def backbone(self) -> Backbone:
        return Backbone.from_dict(self.about["backbone"])


def save_trained(folder: Path, tuned: Tuned, about: dict[str, Any], backbone: Backbone, write: bool = True) -> None:
    """Write what `tuned` has learned to `folder`, in the files named above. Every process has to call it for a model
    that is split over them, with write=False on all but one."""
    about = _resolved(about, backbone)
    states = _states(tuned)
    if states:
        if write:
            write_native(states, folder / NATIVE_NAME, {_NOTE: about})
        if write and not any(state.bypassed for state in states.values()):  # stock PEFT would have no effect there
            export_states(states, folder / PEFT_FOLDER, "peft")
            write_json(folder / PEFT_FOLDER / NOTE_NAME, about)
    elif tuned.method.startswith("peft-"):
        state = {name: whole(tensor) for name, tensor in tuned.model.state_dict().items()}
        if write:
            tuned.model.save_pretrained(str(folder / PEFT_FOLDER), state_dict=state)  # type: ignore[operator]
            write_json(folder / PEFT_FOLDER / NOTE_NAME, about)
    else:
        tensors = {name: whole(p).cpu().contiguous() for name, p in tuned.trainable().items()}
        if write:
            write_container(folder / TRAINED_NAME, TRAINED, about, tensors)


def keep_adapter(
    folder: Path, tuned: Tuned, about: dict[str, Any], backbone: Backbone, step: int, write: bool = True
) -> None:
    """Write the native adapter as it is after optimizer step `step` to KEPT_FOLDER, if the method has one; to be called
    as `save_trained` is."""
    states = _states(tuned)
    if states and write:
        (folder / KEPT_FOLDER).mkdir(exist_ok=True)
        notes = {_NOTE: _resolved(about, backbone), "step": step}
        write_native(states, folder / KEPT_FOLDER / f"step-{step:06d}.safetensors", notes)


def _resolved(about: dict[str, Any], backbone: Backbone) -> dict[str, Any]:
    """The note, with the place of a local file of weights in full."""
    if not backbone.checkpoint:
        return about
    return {**about, "backbone": {**backbone.to_dict(), "checkpoint": str(from_root(backbone.checkpoint))}}


def _states(tuned: Tuned) -> dict[str, AdapterState]:
    if tuned.adapter is None:
        return {}
    heads = {name: tuned.model.get_submodule(name) for name in tuned.heads}
    return {"model": adapter_state(tuned.adapter, heads)}


def load_trained(path: Path, checkpoint: str | None = None) -> Trained:
    """The classifier of a run folder, or of one of the files in it; builds the base and loads its weights.

    checkpoint: a local file of the base's weights, instead of the place that the note names. Raises InputError
    for what is no output of train_vtab.py, InputError when the base cannot be had.
    """
    path = _the_file(path)
    about = _note(path)
    values = {**about["backbone"], **({"checkpoint": checkpoint} if checkpoint else {})}
    try:
        backbone = Backbone.from_dict(values)
    except InputError as error:
        raise InputError(f"{path} names a base that cannot be had: {error}") from None
    if about.get("weights") not in (None, weights_digest(backbone)):
        raise InputError(
            f"{path} was trained on another base: {backbone.checkpoint or 'what the hub has now'} holds other weights "
            f"of {backbone.name}; give the file of its own by --checkpoint"
        )
    model = build(backbone, len(about["classes"]))
    if path.name == "adapter_config.json":
        model = _load_peft(model, path.parent)
    elif _is_native(path):
        load_adapter(model, path)
    else:
        _load_tensors(model, path)
    return Trained(model.eval(), about)


def merge(path: Path, out: Path, checkpoint: str | None = None) -> int:
    """Write the classifier as one plain timm state dict (.safetensors), head included; the number of its tensors.

    `timm.create_model(name, num_classes=..., checkpoint_path=out)` loads it. Raises as `load_trained`.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"the merged checkpoint is a .safetensors file, got {out.name}; give another name")
    trained = load_trained(path, checkpoint)
    model = trained.model
    fold = getattr(model, "merge_and_unload", None)
    if fold is not None:
        model = fold()
    fold_in(model)
    state = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    write_container(out, TRAINED, trained.about, state)
    return len(state)


def predict(trained: Trained, images: Sequence[Path | Picture], top: int = 5) -> list[list[tuple[str, float]]]:
    """The `top` classes of every image with their probabilities, likeliest first. images: files, or pictures that
    `open_picture` has read. Raises InputError for a bad image."""
    backbone = trained.backbone
    normalize, classes = Normalize(backbone), trained.about["classes"]
    answers = []
    for image in images:
        picture = image if isinstance(image, Picture) else open_picture(image)
        with torch.no_grad():
            logits = trained.model(normalize(to_tensor(picture.image, backbone.image_size)[None]))
        best = logits[0].softmax(dim=0).topk(min(top, len(classes)))
        answers.append([(classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)])
    return answers


def command_lines(args: argparse.Namespace) -> Iterator[str]:
    """What `python -m dash_vision predict` and `merge` print. Raises InputError."""
    if args.command == "merge":
        count = merge(args.adapter, args.out, args.checkpoint)
        yield f"wrote {args.out}: {count} tensors, a plain timm checkpoint"
        return
    if args.top < 1:
        raise InputError(f"--top is 1 or more, got {args.top}")
    trained = load_trained(args.adapter, args.checkpoint)
    for path in args.images:
        picture = open_picture(path)
        yield f"{path}:"
        yield from (f"  note: {note}" for note in picture_notes({text: [path.name] for text in picture.remarks}))
        for name, probability in predict(trained, [picture], args.top)[0]:
            yield f"  {100 * probability:5.1f} %  {name}"


# -- finding and reading


def _the_file(path: Path) -> Path:
    """The file that holds the trained tensors: `path` itself, or the one in the run folder `path`."""
    if path.is_file():
        return path
    for name in (NATIVE_NAME, TRAINED_NAME, f"{PEFT_FOLDER}/adapter_config.json", "adapter_config.json"):
        if (path / name).is_file():
            return path / name
    raise InputError(
        f"{path} is {'a folder without a trained model' if path.is_dir() else 'not there'}; give a run folder of "
        f"train_vtab.py, or {NATIVE_NAME} or {TRAINED_NAME} in it"
    )


def _is_native(path: Path) -> bool:
    return path.suffix == ".safetensors" and kind_of(path) == ADAPTER.name


def _note(path: Path) -> dict[str, Any]:
    about: Any = None
    if path.name == "adapter_config.json":
        try:
            about = json.loads((path.parent / NOTE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            about = None
    elif path.suffix == ".safetensors":
        kind = kind_of(path)
        if kind == TRAINED.name:
            about = read_content(path, TRAINED)
        elif kind == ADAPTER.name:
            about = read_notes(path).get(_NOTE)
    if not isinstance(about, dict) or not _is_note(about):
        raise InputError(
            f"{path} does not say which base and classes it belongs to: it was not written by train_vtab.py; load it "
            "with dash_vision.load_adapter into the model it was trained on"
        )
    return about


def _is_note(about: dict[str, Any]) -> bool:
    classes = about.get("classes")
    named = isinstance(classes, list) and classes != [] and all(isinstance(name, str) for name in classes)
    return named and isinstance(about.get("backbone"), dict)


def _load_peft(model: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():  # PEFT would take a pickle instead
        raise InputError(f"{folder} has no adapter_model.safetensors; give the folder that PEFT wrote")
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # a foreign configuration fails in PEFT wherever its first odd value is met
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"PEFT cannot read {folder} ({type(error).__name__}: {reason})") from None


def _load_tensors(model: nn.Module, path: Path) -> None:
    """Write the file's tensors over the model's, all or none."""
    own = dict(model.named_parameters())
    _, tensors = read_container(path, TRAINED)
    for key, tensor in tensors.items():
        if key not in own or own[key].shape != tensor.shape:
            raise InputError(f"{path} does not fit its base: {key} is {tuple(tensor.shape)} in the file")
        if own[key].dtype != tensor.dtype or not torch.isfinite(tensor).all():
            raise InputError(f"{path} is damaged: {key} holds NaN, infinity or numbers of another kind")
    with torch.no_grad():
        for key, tensor in tensors.items():
            own[key].copy_(tensor)

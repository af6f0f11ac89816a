"""The adapters that a run kept, and the pictures that they are measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dash_vision.files.errors import InputError
from dash_vision.pictures.decode import Refused, read_picture
from dash_vision.pictures.listing import PictureFile, files_digest, list_folder
from dash_vision.runs.record import REPLACING

from ..runs import LORA, DreamBoothRun

KEPT = "adapters"


@dataclass(frozen=True)
class Checkpoint:
    """An adapter of a run after `step`. folder: that holds it; place: the same as the run's record names it."""

    step: int
    folder: Path
    place: str

    def digest(self) -> str:
        """By which the same adapter is recognised."""
        return hashlib.sha256((self.folder / LORA).read_bytes()).hexdigest()[:16]


def find_checkpoints(run: DreamBoothRun) -> list[Checkpoint]:
    """By step; the one in the run's folder too, where it is there alone. Raises InputError for a run that kept no
    other."""
    found: dict[int, Checkpoint] = {}
    for file in sorted((run.folder / KEPT).glob(f"*/{LORA}")):
        digits = file.parent.name.rsplit("-", 1)[-1]
        if digits.isdecimal():
            found[int(digits)] = Checkpoint(int(digits), file.parent, f"{KEPT}/{file.parent.name}")
    if not found:
        raise InputError(
            f"{run.folder} keeps no adapter but its last one; train with --holdout, which keeps those that it "
            "measures, or with --save_lora_every"
        )
    if not (run.folder / REPLACING).is_file():
        present = run.steps_of_adapter
        found.setdefault(present, Checkpoint(present, run.folder, "."))
    return [found[step] for step in sorted(found)]


@dataclass(frozen=True)
class HeldOut:
    """Pictures that checkpoints are measured on. digest: of their files. learned: the run learned from them. folder:
    that they are in."""

    names: list[str]
    captions: list[str]
    pictures: list[Image.Image]
    digest: str
    folder: str
    learned: bool = False


def held_out(run: DreamBoothRun, folder: Path | None) -> HeldOut:
    """Those in `folder`; without one those that the run held out, and where it held out none those that it learned
    from. Raises InputError where they cannot be read."""
    evaluation, prompt = run.record.evaluation, run.prompt
    captions = bool(run.record.arguments.get("use_captions", True))
    if folder is not None:
        files = _listed(str(folder), captions)
        found = [(file.name, file.caption or prompt, file.path) for file in files]
        return HeldOut(*_read(found), str(folder), _learned_from(run, [file.path for file in files]))
    place = str(run.record.arguments["instance_data_dir"])
    # A run that held nothing out has an evaluation where --apply left one.
    nothing_held_out = run.record.arguments.get("holdout") is None
    if evaluation is None or (nothing_held_out and evaluation.folder == place):
        files = _listed(place, captions)
        found = [(file.name, file.caption or prompt, file.path) for file in files]
        return HeldOut(*_read(found), place, learned=True)
    paths = {file.name: file.path for file in _listed(evaluation.folder, False)}
    missing = [name for name in evaluation.heldout if name not in paths]
    if missing:
        raise InputError(f"{evaluation.folder} holds no {missing[0]} any more, which the run held out; {_INSTEAD}")
    named = zip(evaluation.heldout, evaluation.captions, strict=True)
    found = [(name, caption, paths[name]) for name, caption in named]
    return HeldOut(*_read(found), evaluation.folder, evaluation.learned)


def _learned_from(run: DreamBoothRun, files: Sequence[Path]) -> bool:
    """Whether all these files are among those that the run learned from, as far as these are still there."""
    place, evaluation, kept = str(run.record.arguments["instance_data_dir"]), run.record.evaluation, set[str]()
    apart = run.record.arguments.get("holdout") is not None
    if evaluation is not None and apart and Path(evaluation.folder).resolve() == Path(place).resolve():
        kept = set(evaluation.heldout)
    try:
        own = [file.path for file in list_folder(place).files if file.name not in kept]
    except InputError:  # moved since
        return False
    learned = {files_digest([path]) for path in own}
    return all(files_digest([path]) in learned for path in files)


_INSTEAD = "give a folder with pictures of the subject by --holdout"


def _listed(folder: str, captions: bool) -> Sequence[PictureFile]:
    try:
        return list_folder(folder, captions=captions).files
    except InputError as error:
        raise InputError(f"the pictures cannot be read ({error}); {_INSTEAD}") from None


def _read(found: list[tuple[str, str, Path]]) -> tuple[list[str], list[str], list[Image.Image], str]:
    pictures = []
    for name, _, path in found:
        try:
            pictures.append(read_picture(path).image)
        except Refused as reason:
            raise InputError(f"{name} cannot be used ({reason}); {_INSTEAD}") from None
    digest = files_digest([path for _, _, path in found])
    return [name for name, _, _ in found], [caption for _, caption, _ in found], pictures, digest

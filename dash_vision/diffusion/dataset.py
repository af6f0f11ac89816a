"""--dataset_name: the pictures of a data set as a folder, which is then read like any other.

OUTPUT_DIR/dataset/pictures/    00000.png and so on, the bytes of the data set, and metadata.jsonl with the captions
OUTPUT_DIR/dataset/made_of.json     of which data set they are
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..files.atomic import write_json, write_text
from ..files.errors import InputError, one_line
from ..pictures.formats import READABLE, sniff
from .config import DreamBoothConfig

FOLDER, PICTURES, RECORD_NAME = "dataset", "pictures", "made_of.json"
_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tiff"}  # of other kinds it is the name


def dataset_pictures(settings: DreamBoothConfig, output: Path) -> Path:
    """The folder of the data set's pictures, under `output`: written once, and found again by the next run of the
    same settings. Raises InputError for a data set that cannot be read."""
    folder = output / FOLDER
    origin = {
        name: getattr(settings, name)
        for name in ("dataset_name", "dataset_config_name", "image_column", "caption_column")
    }
    if _read_origin(folder / RECORD_NAME) != origin:
        shutil.rmtree(folder, ignore_errors=True)
        _write(settings, folder / PICTURES)
        write_json(folder / RECORD_NAME, origin)  # last: pictures without it are of a copy that was interrupted
    return folder / PICTURES


def _read_origin(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(settings: DreamBoothConfig, folder: Path) -> None:
    rows = _rows(settings)
    folder.mkdir(parents=True)
    captions = []
    for number, row in enumerate(rows):
        data = _bytes_of(row[settings.image_column or "image"], settings, number)
        name = f"{number:05d}{_suffix(data, settings, number)}"
        (folder / name).write_bytes(data)
        if settings.caption_column and row[settings.caption_column]:  # without one, the prompt stands
            captions.append({"file_name": name, "text": row[settings.caption_column]})
    if captions:
        lines = "".join(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
        write_text(folder / "metadata.jsonl", lines)


def _rows(settings: DreamBoothConfig) -> Any:
    """The rows of the data set's only split, or of "train", with pictures as the bytes that they are stored in."""
    try:
        import datasets
    except ImportError:
        raise InputError("--dataset_name needs its package: pip install 'dash-vision[datasets]'") from None
    name = str(Path(settings.dataset_name or "").expanduser())
    try:
        splits = datasets.load_dataset(name, settings.dataset_config_name, cache_dir=settings.cache_dir)
    except Exception as error:  # the library has no exception of its own that all its others are
        raise InputError(
            f"cannot read the data set {settings.dataset_name} ({_reason(error)}); check --dataset_name and "
            "--dataset_config_name, and for gated ones `hf auth login`"
        ) from None
    if "train" not in splits and len(splits) != 1:
        raise InputError(f"the data set {settings.dataset_name} has no split train, only {', '.join(splits)}")
    rows = splits["train"] if "train" in splits else next(iter(splits.values()))
    column = settings.image_column or "image"
    for flag, named in (("image_column", column), ("caption_column", settings.caption_column)):
        if named is not None and named not in rows.column_names:
            raise InputError(
                f"the data set {settings.dataset_name} has no column {named!r}; its columns are "
                f"{', '.join(rows.column_names)}: give one by --{flag}"
            )
    if not isinstance(rows.features[column], datasets.Image):
        raise InputError(
            f"the column {column!r} of {settings.dataset_name} holds no pictures; give another by --image_column"
        )
    return rows.cast_column(column, datasets.Image(decode=False))


def _bytes_of(picture: Any, settings: DreamBoothConfig, number: int) -> bytes:
    if picture and picture.get("bytes") is not None:
        return bytes(picture["bytes"])
    try:
        return Path(picture["path"]).read_bytes()
    except (OSError, TypeError, KeyError) as error:
        raise InputError(f"row {number} of {settings.dataset_name} has no picture ({_reason(error)})") from None


def _suffix(data: bytes, settings: DreamBoothConfig, number: int) -> str:
    """By the first bytes: whether the rest can be decoded is for the one reader of pictures to say."""
    kind = sniff(data[:64])
    if kind not in READABLE:
        raise InputError(
            f"row {number} of {settings.dataset_name} is {kind or 'no picture'}; the pictures can be "
            f"{', '.join(READABLE)}"
        )
    return _SUFFIXES.get(kind, f".{kind.lower()}")


def _reason(error: Exception) -> str:
    return one_line(" ".join(str(error).split())[:300]) or type(error).__name__

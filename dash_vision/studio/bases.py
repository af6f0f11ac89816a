"""The bases to choose from: the miniature, what lies in the given folders, and the hub's by docs/bases.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files.errors import InputError
from ..miniature import FLOW, MINIATURE, STEPS
from ..pictures.captions import shown
from .places import below

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DEEP = 2  # folders below a given one in which bases are looked for
_GB = 1e9


@dataclass(frozen=True)
class Choice:
    """A base. value: of --pretrained_model_name_or_path. size, licence, side, steps: as docs/bases.md has them; "" or 0
    where that is unknown. fetched: it lies on this machine."""

    value: str
    name: str
    size: str
    licence: str
    side: int
    steps: int
    fetched: bool = True


# (hub id, parameters of the denoiser, licence, pixels, steps) of docs/bases.md.
HUB = (
    ("black-forest-labs/FLUX.2-klein-base-4B", "4B", "Apache 2.0", 1024, 750),
    ("Tongyi-MAI/Z-Image", "6.2B", "Apache 2.0", 1024, 750),
    ("Qwen/Qwen-Image", "20.4B", "Apache 2.0", 1024, 750),
    ("krea/Krea-2-Raw", "12.8B", "Krea's community licence", 1024, 750),
    ("black-forest-labs/FLUX.2-dev", "32.2B", "non-commercial", 1024, 750),
    ("black-forest-labs/FLUX.1-dev", "11.9B", "non-commercial", 1024, 750),
    ("stabilityai/stable-diffusion-3.5-medium", "2.5B", "Stability's community licence", 1024, 750),
    ("stabilityai/stable-diffusion-xl-base-1.0", "2.6B", "OpenRAIL++", 1024, 500),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "0.9B", "OpenRAIL", 512, 500),
)


def choices(folders: Sequence[Path]) -> list[Choice]:
    """Every base that the form offers."""
    return [
        Choice(MINIATURE, "the miniature", "comes with the package", "Apache 2.0", 64, STEPS),
        Choice(FLOW, "the flow-matching miniature", "comes with the package", "Apache 2.0", 64, STEPS),
        *local_bases(folders),
        *(
            Choice(name, name, f"{size} parameters", licence, side, steps, _is_fetched(name))
            for name, size, licence, side, steps in HUB
        ),
    ]


def local_bases(folders: Sequence[Path]) -> list[Choice]:
    """Pipelines of diffusers and single files in the given folders."""
    found = []
    for folder in folders:
        for path in _entries(folder, _DEEP):
            whole = path.is_dir() and (path / "model_index.json").is_file()
            if whole or (path.is_file() and path.suffix == ".safetensors"):
                size = sum(p.stat().st_size for p in ([path] if not whole else path.rglob("*.safetensors")))
                name = path.relative_to(folder).as_posix()
                found.append(Choice(str(path), name, f"{size / _GB:.1f} GB on this machine", "", 0, 0))
    return found


def _entries(folder: Path, deep: int) -> list[Path]:
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and below(str(p), [folder]))
    except OSError:
        return []
    result = []
    for path in entries:
        result.append(path)
        if deep > 1 and path.is_dir() and not (path / "model_index.json").is_file():
            result += _entries(path, deep - 1)
    return result


def _is_fetched(name: str) -> bool:
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots").is_dir()


def check_base(text: str, roots: Sequence[Path], what: str) -> str:
    """A hub id, or a path in one of the given folders. Raises InputError."""
    if _HUB_ID.fullmatch(text) and ".." not in text and not Path(text).exists():
        return text
    if below(text, list(roots)) and Path(text).exists():
        return text
    raise InputError(
        f"{what} {shown(text)} is no hub id such as black-forest-labs/FLUX.2-klein-base-4B, and lies in none of the "
        "folders that the page was started with; start it with --bases FOLDER"
    )

"""Why a base could not be loaded: one sentence, from what is there and from what the libraries raised."""

from __future__ import annotations

import errno
import importlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files.errors import InputError, one_line

INDEX = "model_index.json"
# model.safetensors, model.fp16.safetensors, and parts of a large one with the variant in either place.
_WEIGHTS = re.compile(r"(?P<stem>\w+)(?:\.(?P<a>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<b>\w+))?\.safetensors")
_POINTER = b"version https://git-lfs"
_LONGEST = 300  # characters that are quoted of a library's message


@contextmanager
def explained(words: Callable[[Exception], str]) -> Iterator[None]:
    """Whatever a library raises inside ends as an InputError with these words, which are made of the error."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # torch, diffusers, transformers, timm, the hub and what they use: each has its own
        raise InputError(one_line(words(error))) from None


def quoted(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:_LONGEST].rstrip(". ") or type(error).__name__


def _first_sentence(error: BaseException) -> str:
    """Without the advice about arguments of the libraries, which a command line has not."""
    return quoted(error).split(". ")[0]


def needed(error: BaseException) -> str | None:
    """What to install, where a package is missing; None for other errors."""
    if not isinstance(error, ImportError):
        return None
    text = " ".join(str(error).split())
    asked = re.search(r"(\S+) requires the (\S+) library", text)
    command = re.search(r"pip install ([\w.\[\]-]+)", text)
    package = command.group(1) if command else asked.group(2) if asked else error.name
    if package is None:
        return quoted(error)
    what = f"its {asked.group(1)}" if asked else "it"
    return f"{what} needs {package}, which is not installed: pip install {package}"


def disk(error: BaseException) -> str | None:
    """What the disk refused; None for other errors."""
    known = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE)
    if not isinstance(error, OSError) or error.errno not in known:
        return None
    return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"


def chain(error: BaseException) -> list[BaseException]:
    """An error and those that it was raised from, the last first."""
    errors: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in errors:
        errors.append(link)
        link = link.__cause__ or link.__context__
    return errors


# -- a folder


def of_folder(
    folder: Path,
    error: Exception,
    networks: Collection[str],
    variant: str | None,
    parts: Mapping[str, Any] | None = None,
) -> str:
    """Why the pipeline in a folder could not be loaded. networks: names of its networks. parts: of all that is loaded,
    with library and class."""
    general = needed(error) or disk(error)
    if general:
        return general
    if not (folder / INDEX).is_file():
        return f"it has no {INDEX}, so it is no diffusers model folder; give the folder that holds one"
    index = read_json(folder / INDEX)
    if not isinstance(index, dict):
        return f"its {INDEX} is cut short or no JSON; fetch it again"
    for name, kind in (parts or {}).items():
        if isinstance(kind, list | tuple) and kind[-1]:
            fault = of_part(folder / name, name in networks, variant)
            if fault:
                return fault
    for name, kind in (parts or {}).items():
        unknown = _unknown(name, *kind) if isinstance(kind, list | tuple) and len(kind) == 2 else None
        if unknown:
            return unknown
    return f"{quoted(error)}; check that the folder is complete"


def of_network(folder: Path, error: Exception, library: str, kind: str, variant: str | None) -> str:
    """Why one network of a pipeline could not be loaded from its folder."""
    return (
        needed(error)
        or disk(error)
        or _unknown(folder.name, library, kind)
        or of_part(folder, True, variant)
        or f"the weights in {folder.name}/ do not fit its config.json ({_first_sentence(error)}); fetch both again"
    )


def _unknown(name: str, library: Any, kind: Any) -> str | None:
    """What to say of a class that the installed library does not have; None where it has it."""
    if library not in ("diffusers", "transformers") or hasattr(importlib.import_module(library), str(kind)):
        return None
    return (
        f"its {name} is a {kind}, which {library} {metadata.version(library)} does not have; update {library}, or "
        f"check {INDEX}"
    )


def of_part(folder: Path, network: bool, variant: str | None) -> str | None:
    """What is wrong with the files of one part of a pipeline; None where nothing is to be seen."""
    name = folder.name
    if not folder.is_dir():
        return f"its folder {name}/ is missing; fetch it again"
    for file in sorted(folder.glob("*.json")):
        if _is_pointer(file):
            return _pointer(file)
        if read_json(file) is None:
            return f"{name}/{file.name} is cut short or no JSON; fetch it again"
    if not network:
        return None if any(folder.iterdir()) else f"its folder {name}/ is empty; fetch it again"
    if not (folder / "config.json").is_file():
        return f"{name}/config.json is missing; fetch it again"
    return _weights_fault(folder, variant)


def _weights_fault(folder: Path, variant: str | None) -> str | None:
    name, files = folder.name, sorted(folder.glob("*.safetensors"))
    for file in files:
        if _is_pointer(file):
            return _pointer(file)
        if not _is_whole(file):
            return f"{name}/{file.name} is cut short; fetch it again"
    for file in sorted(folder.glob("*.index*.json")):
        content = read_json(file)
        listed = content.get("weight_map", {}) if isinstance(content, dict) else {}
        absent = sorted({part for part in listed.values() if not (folder / part).is_file()})
        if absent and "safetensors" in file.name:
            return f"{name}/ lacks {', '.join(absent[:3])}, which {file.name} lists; fetch the missing files"
    return of_weights(name, [file.name for file in folder.iterdir()], variant, str(folder.parent))


def of_weights(part: str, files: Collection[str], variant: str | None, source: str) -> str | None:
    """What is wrong with the names of a network's files; None where nothing is. source: of the whole base."""
    variants = {variant_of(file) for file in files if file.endswith(".safetensors")}
    pickles = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if not variants and pickles:
        return (
            f"{part}/ holds only {pickles[0]}, a pickle, which can run code when it is opened; if you trust it, "
            'convert the base: python -c "from diffusers import DiffusionPipeline as P; '
            f"P.from_pretrained('{source}', use_safetensors=False).save_pretrained('NEW_FOLDER')\""
        )
    if not variants:
        return f"{part}/ holds no weights; fetch them"
    if variant not in variants and None not in variants:
        others = sorted(v for v in variants if v)
        return f"{part}/ holds only {' and '.join(others)} files; give --variant {others[0]}"
    return None


def without_variant(folder: Path, networks: Collection[str], variant: str) -> str | None:
    """What to say where no network has files of the wanted variant; None where one has."""
    if any(variant_for(folder / name, variant) for name in networks):
        return None
    return f"it has no {variant} files; leave out --variant {variant}"


def variant_of(file: str) -> str | None:
    """ "fp16" of "model.fp16.safetensors"; None of "model.safetensors"."""
    match = _WEIGHTS.fullmatch(file)
    return (match["a"] or match["b"]) if match else None


def variant_for(folder: Path, variant: str | None) -> str | None:
    """The variant to ask a part for: the wanted one where the part has it; another part may have it alone."""
    return variant if any(variant_of(file.name) == variant for file in folder.glob("*.safetensors")) else None


def missing_tensors(name: str, keys: Collection[str]) -> str:
    """What to say where a network's files hold no tensors of these names, which would be random numbers then."""
    shown = ", ".join(sorted(keys)[:2]) + (", ..." if len(keys) > 2 else "")
    return (
        f"the weights of its {name} lack {len(keys)} of its tensors ({shown}); fetch them again, or check that "
        f"{name}/config.json belongs to them"
    )


def _is_pointer(file: Path) -> bool:
    try:
        with open(file, "rb") as opened:
            return opened.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _pointer(file: Path) -> str:
    return (
        f"{file.parent.name}/{file.name} is a pointer of Git LFS and not the file; run `git lfs install` and "
        "`git lfs pull` in the folder"
    )


def _is_whole(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def read_json(file: Path) -> Any:
    """What a file of JSON holds; None where it is missing or no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def of_vae(name: str, error: Exception) -> str:
    """Why another VAE could not be loaded, from a hub id, a folder or a file."""
    folder, general = Path(name), needed(error) or disk(error)
    if general or not folder.exists():
        return general or of_name(name, error)
    if folder.is_file():
        reason = "it lacks tensors of one" if "meta tensor" in str(error) else _first_sentence(error)
        return f"{reason}; give a .safetensors file with a VAE of the base's kind"
    if not (folder / "config.json").is_file() and (folder / "vae").is_dir():
        return f"it is the folder of a whole base; give {folder / 'vae'}"
    return of_part(folder, True, only_variant(folder)) or quoted(error)


def only_variant(folder: Path) -> str | None:
    """The variant of a network's files where all are of one; None where some have none."""
    variants = {variant_of(file.name) for file in folder.glob("*.safetensors")}
    return variants.pop() if len(variants) == 1 else None


# -- a single file


def of_file(path: Path, error: Exception, config: str | None) -> str:
    """Why a single file could not be loaded. config: where its configuration was looked for."""
    general = needed(error) or disk(error)
    if general:
        return general
    if config is not None and Path(config).is_dir() and not (Path(config) / INDEX).is_file():
        return f"--single_file_config {config} has no {INDEX}; give the folder of a whole base of this kind"
    lost = of_hub(error)
    if lost:
        return (
            f"a single file holds no configuration, and the hub, where that is, gave: {lost}; give "
            "--single_file_config with the local folder of a base of its kind"
        )
    return _file_fault(error)


def _file_fault(error: Exception) -> str:
    """What diffusers' readers of single files mean by their errors."""
    text = str(error)
    part = re.search(r"Failed to load (\w+)\. Weights", text)
    if part:
        return f"it holds no weights of a {part.group(1)}; give a file with all the networks of a base"
    if "meta tensor" in text:
        return incomplete_file()
    if isinstance(error, KeyError):
        return f"it lacks the tensor {error.args[0]}; fetch it again, or give a file with all the networks of a base"
    return (
        f"{quoted(error)}; check that the file is a whole base, and that --single_file_config names one of its kind "
        "where it is given"
    )


def of_single_network(error: Exception, part: str, kind: str) -> str:
    """Why the file of one network could not be read. part: its name in a pipeline. kind: its class."""
    general = needed(error) or disk(error)
    if general:
        return general
    why = f"it lacks {error.args[0]}" if isinstance(error, KeyError) and error.args else _first_sentence(error)
    why = "it lacks tensors of one" if "meta tensor" in why else why
    return (
        f"it does not hold the {kind} that --single_file_config describes as its {part} ({why}); give the base that "
        "the file belongs to"
    )


def incomplete_file() -> str:
    """What to say of a file that lacks some tensors of a network."""
    return "it lacks some tensors of its networks; fetch it again, or give --single_file_config with a base of its kind"


# -- the hub


def of_hub(error: BaseException) -> str | None:
    """What the hub or the way to it refused; None for errors of another kind."""
    from huggingface_hub import errors

    links = chain(error)
    kinds: Mapping[str, str] = {
        "GatedRepoError": "it is gated: accept its terms on its page, then `hf auth login`",
        "RevisionNotFoundError": "it has no such --revision",
        "DisabledRepoError": "the hub has disabled it",
        "RepositoryNotFoundError": "there is none of that name, or it is private: check the name, or `hf auth login`",
    }
    for kind, words in kinds.items():
        if any(isinstance(link, getattr(errors, kind)) for link in links):
            return words
    for link in links:
        if isinstance(link, errors.RemoteEntryNotFoundError):
            return f"it lacks a file ({quoted(link)})"
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(link, errors.HfHubHTTPError) and status:
            return f"its answer was {status} ({quoted(link)}); try again later"
    for link in links:
        if isinstance(link, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
            return _not_cached(links)
    if any(_is_network(link) for link in links):
        return f"the hub cannot be reached ({quoted(links[-1])}); check the network"
    return None


def _not_cached(links: list[BaseException]) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "it is not in the hub cache while HF_HUB_OFFLINE is set; unset it, or give a local folder"
    return f"the hub cannot be reached ({quoted(links[-1])}) and it is not in the cache; check the network"


def _is_network(error: BaseException) -> bool:
    """By the module that raised it: the hub's client has changed its library more than once."""
    network = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "socket", "ssl")
    return type(error).__module__.split(".")[0] in network or isinstance(error, ConnectionError | TimeoutError)


def of_name(name: str, error: Exception, revision: str | None = None, variant: str | None = None) -> str:
    """Why what is no folder and no file here could not be fetched."""
    from huggingface_hub import constants

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return "there is no such folder; check the path"
    general = needed(error) or disk(error)
    if general:
        return general
    if constants.HF_HUB_OFFLINE:
        return f"there is no such folder here, and {_not_cached([])}"
    cause = of_hub(error) or _of_repository(name, revision, variant) or quoted(error)
    return f"there is no such folder here, and of the hub's model of that name: {cause}"


def _of_repository(name: str, revision: str | None, variant: str | None) -> str | None:
    """What is wrong with the names of the files of the hub's model; None where nothing is, or they cannot be listed."""
    from huggingface_hub import list_repo_files

    try:
        files = [Path(file) for file in list_repo_files(name, revision=revision)]
    except Exception:  # the first failure is the one to tell of
        return None
    if not any(file.as_posix() == INDEX for file in files):
        return f"it has no {INDEX}, so it is no diffusers model"
    for part in sorted({file.parent.name for file in files if file.name == "config.json" and len(file.parts) == 2}):
        fault = of_weights(part, [file.name for file in files if file.parent.name == part], variant, name)
        if fault:
            return fault
    return None

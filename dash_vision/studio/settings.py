"""The settings of a new run as fields of a form: named, described and checked by the same dataclass as the flags."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..diffusion.config import DreamBoothConfig
from ..diffusion.prompts import RARE_WORD, Prompts, default_validation_prompts
from ..files.errors import InputError
from ..miniature import EMBEDDED, MINIATURE
from ..pictures.captions import shown
from ..runs.settings import from_text
from .bases import check_base
from .places import below

FEW = ("max_train_steps", "holdout", "dash_k", "validation_steps")
CHECKED = ("with_prior_preservation",)  # one of the few too, a box to tick
# What the page itself decides.
_OWN = {
    *("instance_data_dir", "output_dir", "instance_prompt", "class_prompt", "pretrained_model_name_or_path"),
    *("dataset_name", "dataset_config_name", "image_column", "caption_column", "resume_from_checkpoint", "overwrite"),
}
_SECRET = {"hub_token", "push_to_hub", "hub_model_id"}  # nothing leaves the machine by a click


@dataclass(frozen=True)
class Field:
    """A setting on the form. kind: "text", "number", "whole", "box", "choice" or "lines". default: what holds without
    it, in words. help: as `--help` has it."""

    name: str
    kind: str
    help: str
    default: str
    choices: tuple[str, ...] = ()
    group: str = ""

    @property
    def label(self) -> str:
        """The flag's words."""
        return self.name.replace("_", " ")


def form_fields() -> list[Field]:
    """Every setting that the form has, in the order of `--help`."""
    return [_field(f) for f in dataclasses.fields(DreamBoothConfig) if f.name not in _OWN | _SECRET]


def _field(field: dataclasses.Field[Any]) -> Field:
    meta, annotation = field.metadata, str(field.type)
    kind = "text"
    if annotation.startswith("list"):
        kind = "lines"
    elif annotation.startswith("bool"):
        kind = "box" if field.default is False else "choice"
    elif meta["choices"]:
        kind = "choice"
    elif annotation.startswith(("int", "float")):
        kind = "whole" if annotation.startswith("int") else "number"
    choices = tuple(meta["choices"]) or (("true", "false") if kind == "choice" else ())
    plain = field.default if field.default_factory is dataclasses.MISSING else None
    shown = {True: "on", False: "off"}.get(plain, plain) if isinstance(plain, bool) else plain
    default = meta["shown_default"] or ("none" if shown is None else str(shown))
    return Field(field.name, kind, meta["help"], default, choices, meta["group"])


@dataclass(frozen=True)
class NewRun:
    """What the form says. words: of the command line but for the output folder."""

    config: DreamBoothConfig
    words: list[str]
    prompts: list[str]


def read_form(form: Mapping[str, str], pictures: Path, output: Path, roots: Sequence[Path]) -> NewRun:
    """The run that a form asks for. form: texts by the fields' names, and subject, kind and base. roots: the folders
    that paths may lead into. Raises InputError with the sentence that the command itself would say."""
    values: dict[str, Any] = {"instance_data_dir": str(pictures), "output_dir": str(output)}
    base = form.get("base", MINIATURE).strip()
    if base != MINIATURE:
        values["pretrained_model_name_or_path"] = base if base in EMBEDDED else check_base(base, roots, "the base")
    values |= _prompts(form)
    for field in form_fields():
        text = form.get(field.name, "").strip()
        if text:
            value = from_text(DreamBoothConfig, field.name, text)
            if value != _default(field.name):
                values[field.name] = value
    _check_places(values, roots, output)
    if not (values.get("with_prior_preservation") or values.get("holdout")):
        del values["class_prompt"]
    config = DreamBoothConfig(**values)
    instance = str(values["instance_prompt"])
    prompts_of_all = Prompts(instance, str(values.get("class_prompt", "")), _subject(form))
    columns = config.validation_prompt or default_validation_prompts(prompts_of_all)
    prompts = [prompt.replace("{}", _subject(form)) for prompt in columns]
    return NewRun(config, command_words(values), prompts)


def _default(name: str) -> Any:
    return next(f.default for f in dataclasses.fields(DreamBoothConfig) if f.name == name)


def _subject(form: Mapping[str, str]) -> str:
    return " ".join(f"{form.get('subject', '')} {form.get('kind', '')}".split())


def _prompts(form: Mapping[str, str]) -> dict[str, str]:
    word, kind = (" ".join(form.get(name, "").split()) for name in ("subject", "kind"))
    if not kind:
        raise InputError("the class is empty; say what is on the pictures, such as cat")
    if not word:
        raise InputError(f"the word for the subject is empty; give a rare one, such as {RARE_WORD}")
    return {"instance_prompt": f"a photo of {word} {kind}", "class_prompt": f"a photo of {kind}"}


def _check_places(values: Mapping[str, Any], roots: Sequence[Path], output: Path) -> None:
    """Raises InputError for a path that leads elsewhere, and for a text that would be read as a file or a flag."""
    for field in dataclasses.fields(DreamBoothConfig):
        value = values.get(field.name)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and field.name not in _OWN:
                _check_text(field.name, field.metadata["metavar"] or "", text, roots, output)
    for prompt in values.get("validation_prompt", ()):
        check_prompt(prompt, "--validation_prompt")


def _check_text(name: str, takes: str, text: str, roots: Sequence[Path], output: Path) -> None:
    """takes: the placeholder of the flag's value, which says whether it is a path."""
    if text.startswith("-") or not text.isprintable():
        raise InputError(f"--{name} {shown(text)} begins like a flag or holds control characters; begin with a letter")
    if "DIR" in takes and not ("|" in takes and re.fullmatch(r"[\d.]+", text)):
        inside = below(str(output / text), [output]) if name == "logging_dir" else below(text, list(roots))
        if not inside:
            raise InputError(
                f"--{name} {shown(text)} lies in none of the folders that the page was started with; leave it empty, "
                "or start the run on the command line"
            )
    elif "PATH" in takes and text != "none":
        check_base(text, roots, f"--{name}")


def check_prompt(prompt: str, what: str) -> str:
    """The prompt. Raises InputError where a command would take it for something else."""
    if not prompt.strip():
        raise InputError(f"{what} is empty; give a prompt")
    if prompt.endswith(".txt") and " " not in prompt.strip():
        raise InputError(f"{what} {prompt} is the name of a file; give the prompt itself")
    if prompt.lstrip().startswith("-") or not prompt.replace("\n", " ").isprintable():
        raise InputError(f"{what} begins like a flag or holds control characters; begin it with a letter")
    return prompt


def command_words(values: Mapping[str, Any]) -> list[str]:
    """Settings as words of the command line."""
    words: list[str] = []
    for name, value in values.items():
        words.append(f"--{name}")
        if isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append("none" if value is None else "false" if value is False else str(value))
    return words


def flag_of(sentence: str) -> str:
    """The setting that a sentence is about, by the first flag in it; "" where it names none."""
    match = re.search(r"--([a-z_0-9]+)", sentence)
    return match[1] if match else ""

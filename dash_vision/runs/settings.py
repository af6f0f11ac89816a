"""One dataclass of settings -> a command line, a YAML/JSON file and checked values; and what trainers share of it.

A field's metadata says everything: `option(default, group, help, choices=..., aliases=...)`. Names on the command line
are the field names with underscores, as in diffusers' scripts; a hyphen is taken for an underscore.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from ..core.config import SELECTIONS, DashConfig
from ..files.errors import InputError
from .faults import fail
from .words import Flag, check_words, underscored, unknown_settings, unquoted

Settings = TypeVar("Settings")
EXIT_STATUS = """\
exit status: 0 done; 1 a run could not continue, or the data has faults; 2 a setting or an input cannot be used;
128 + n stopped by signal n (130: Ctrl-C) after writing a checkpoint, from which the same command resumes
(accelerate launch itself exits with 1 after every failure)"""
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


# YAML can name one list many times over: written out in full, a value of a few lines would fill the memory.
_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 60, 60


def option(
    default: Any,
    group: str,
    help: str,
    choices: Sequence[Any] = (),
    aliases: Sequence[str] = (),
    metavar: str | None = None,
    shown_default: str | None = None,
    sentences: bool = False,
    secret: bool = False,
) -> Any:
    """A dataclass field that is a setting. `shown_default` is printed where the value itself says nothing. sentences:
    each value is one, so that single words are a sentence without its quotes. secret: it is recorded nowhere."""
    metadata = {
        "group": group,
        "help": help,
        "choices": tuple(choices),
        "aliases": tuple(aliases),
        "metavar": metavar,
        "shown_default": shown_default,
        "sentences": sentences,
        "secret": secret,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(cls: type[Settings], description: str, epilog: str, arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line over those of `--config FILE` over the defaults.

    `cls.FOREIGN`, where there is one, answers flags of other trainers. Exits with status 2 and one sentence when
    something is unknown or of the wrong type; with 0 after --help.
    """
    parser = make_parser(cls, description, epilog)
    words = underscored(list(sys.argv[1:] if arguments is None else arguments))
    try:
        if not {"-h", "--help"} & set(words):
            words, notes = check_words(words, _flags(cls), getattr(cls, "FOREIGN", {}))
            for note in notes if first_process() else ():
                print(f"note: {note}")
        values = vars(parser.parse_args(words))
        file = values.pop("config", None)
        return cls(**{**(_not_replaced(cls, read_config(cls, file), values) if file else {}), **values})
    except InputError as error:
        parser.error(str(error))


def first_process() -> bool:
    """Whether this is the process that speaks, of those that accelerate launch or torchrun started; before torch."""
    return os.environ.get("RANK", "0") == "0"


def _not_replaced(cls: type, file: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A file's settings without those that one on the command line stands for, as epochs stand for steps."""
    replaced = {old for new, old in getattr(cls, "REPLACES", ()) if new in given}
    return {name: value for name, value in file.items() if name not in replaced}


def read_config(cls: type, path: str | Path) -> dict[str, Any]:
    """The settings in a .json, .yaml or .yml file, with their types checked; the record of a run gives that run's
    settings. Raises InputError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no settings file {path}; check --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the settings file {path} ({error}); check --config") from None
    content = _load(path, text)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings; it takes one 'name: value' a line, as in --help")
    if "kind" in content and isinstance(content.get("arguments"), dict):
        try:
            content = cast(Any, cls).of_record(path, content)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is no complete record of a run; give its settings as flags") from None
    fields = _names(cls)
    names = {str(key).replace("-", "_"): value for key, value in content.items()}
    unknown = [name[:60] for name in names if name not in fields]
    if unknown:
        raise InputError(f"{path}: {unknown_settings(unknown, fields)}")
    values = {}
    for name, value in names.items():
        values[fields[name].name] = _typed(cls, fields[name], value, f"{path}: {name}")
    return values


def _load(path: Path, text: str) -> Any:
    import yaml

    try:
        if path.suffix == ".json":
            return json.loads(text)
        if path.suffix in (".yaml", ".yml"):
            return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{path} is not valid {path.suffix[1:].upper()}: {problem}") from None
    raise InputError(f"the settings file {path} ends in {path.suffix!r}; it takes .json, .yaml or .yml")


def _names(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Field by name and by alias."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    return fields | {alias: f for f in fields.values() for alias in f.metadata["aliases"]}


def _flags(cls: type) -> dict[str, Flag]:
    """What the settings, by name and alias, take on the command line."""
    flags = {"config": Flag(str)}
    for name, field in _names(cls).items():
        kind, many, _ = _kind(cls, field)
        flags[name] = Flag(kind, many, field.metadata["sentences"])
    return flags


class SentenceParser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, without its usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(fail(message, 2, self.prog))


def make_parser(cls: type, description: str, epilog: str) -> argparse.ArgumentParser:
    # Settings that are not given must not appear, so that a file's value is not hidden by a default.
    parser = SentenceParser(
        usage="%(prog)s [--config FILE] [settings]",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a YAML or JSON file with settings by the names below, or the run.json of a run",
    )
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        group = field.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        _add(groups[group], cls, field)
    return parser


def _add(group: Any, cls: type, field: dataclasses.Field[Any]) -> None:
    meta = field.metadata
    kind, many, optional = _kind(cls, field)
    default = None if many else field.default  # a list has a factory, and says its default by shown_default
    shown = meta["shown_default"] or ("none" if default is None else default)
    settings: dict[str, Any] = {"dest": field.name}
    names = [f"--{field.name}", *(f"--{alias}" for alias in meta["aliases"])]
    if kind is bool:
        settings |= {"nargs": "?", "const": True, "type": _boolean, "metavar": "true|false"}
        shown = "off" if default is False else "on" if default is True else shown
    else:
        convert = kind if kind is str else _number(kind, optional)
        settings |= {"type": convert, "metavar": meta["metavar"] or _placeholder(kind)}
        if meta["choices"]:
            settings |= {"choices": meta["choices"], "metavar": None, "type": _spelling(meta["choices"])}
        if many:
            settings["nargs"] = "+"
    settings["help"] = f"{meta['help']} (default: {shown})".replace("%", "%%")
    group.add_argument(*names, **settings)


def _spelling(choices: Sequence[str]) -> Callable[[str], str]:
    """Gives the choice that a text is but for its capitals, so that AdamW is adamw; else the text."""
    spellings = {choice.lower(): choice for choice in choices}
    return lambda text: spellings.get(text.lower(), text)


_type_hints = functools.cache(typing.get_type_hints)


def _kind(cls: type, field: dataclasses.Field[Any]) -> tuple[type, bool, bool]:
    """(int | float | str | bool, is it a list, may it be None) of a field's annotation."""
    annotation = _type_hints(cls)[field.name]
    optional = False
    if isinstance(annotation, types.UnionType):
        optional = True
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0], True, optional
    return annotation, False, optional


def _placeholder(kind: type) -> str:
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"it takes true or false, got {text!r}")


def _number(kind: type, optional: bool) -> Callable[[str], Any]:
    """Gives the number that a text is; None for "none" where that is a value."""

    def convert(text: str) -> Any:
        if optional and text.lower() == "none":
            return None
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"it takes {_WANTED[kind]}, got {_short.repr(text)}") from None

    return convert


def from_text(cls: type, name: str, text: str) -> Any:
    """The value of a setting that was typed into a field: as a word on the command line; of a list one a line.
    Raises InputError."""
    field = {f.name: f for f in dataclasses.fields(cls)}[name]
    kind, many, optional = _kind(cls, field)
    convert = _boolean if kind is bool else kind if kind is str else _number(kind, optional)
    try:
        values = [convert(line.strip()) for line in (text.splitlines() if many else [text]) if line.strip()]
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--{name}: {error}") from None
    return _typed(cls, field, values if many else values[0], f"--{name}")


def _typed(cls: type, field: dataclasses.Field[Any], value: Any, where: str) -> Any:
    kind, many, optional = _kind(cls, field)
    if value is None and optional:
        return None
    values = value if many and isinstance(value, list) else [value]
    choices = field.metadata["choices"]
    if choices and value is False and "no" in choices:  # what YAML makes of a bare no
        return "no"
    checked = [_one(kind, v, where) for v in values]
    if choices:
        checked = [_spelling(choices)(v) for v in checked]
    for v in checked:
        if choices and v not in choices:
            raise InputError(f"{where} is {_short.repr(v)}; it takes {', '.join(choices)}")
    return checked if many else checked[0]


def _one(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000:
        return float(value)
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{where} holds a zero byte; remove it")
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{where} is {_short.repr(value)}; it takes {_WANTED[kind]}")


# -- the settings that both trainers have: their configurations are made of these classes

DASH, OPTIM, OUTPUT, MACHINE = "LoRA-Dash", "optimizer", "output", "machine"
_LEAST_FACTOR = 0.01  # diffusers' scripts warn below 0.1
_LARGEST = 1e30  # far beyond any use, and far from where float32 overflows


@dataclass
class DashArgs:
    """The adapter: LoRA's settings by the names of diffusers' scripts, the dash's by this package's."""

    rank: int | None = option(None, DASH, "rank of the LoRA update", shown_default="the base's own")
    lora_alpha: float | None = option(None, DASH, "the update is scaled by lora_alpha / rank", shown_default="rank")
    lora_dropout: float = option(0.0, DASH, "dropout on the update's input")
    lora_target: list[str] = option(  # noqa: RUF009 (it makes a field)
        [],
        DASH,
        "layers to adapt: a preset, module-name suffixes, or one regular expression",
        shown_default="the base's own",
    )
    dash_k: int = option(
        8, DASH, "number of singular values that are trained per layer, besides the LoRA; 0 trains plain LoRA"
    )
    prelaunch_steps: int | None = option(
        None,
        DASH,
        "optimizer steps of plain LoRA before the singular values are chosen",
        shown_default="100; a fifth of the steps in a run of 100 steps or fewer",
    )
    dash_lr: float | None = option(
        None, DASH, "learning rate of the shifts, by which singular values change", shown_default="learning_rate"
    )
    dash_selection: str = option(
        "change_rate",
        DASH,
        "how singular values are chosen: change_rate as in the paper, the others as controls",
        choices=SELECTIONS,
    )
    dash_eps: float = option(1e-6, DASH, "epsilon in the change rate |u^T dW v| / (sigma + epsilon)")

    def check_dash(self) -> None:
        """Raises InputError for a value out of its range."""
        at_least(self, 1, "prelaunch_steps")
        at_least(self, 0, "rank", "dash_k", "dash_eps", "dash_lr")
        if self.rank == 0 and self.dash_k == 0:
            raise InputError("--rank and --dash_k are both 0: nothing would be trained; give at least one of them")
        positive(self, "lora_alpha")
        below_one(self, "lora_dropout")
        if self.dash_k == 0 and self.dash_lr:
            raise InputError("--dash_lr does nothing without the dash; give --dash_k, or leave it out")
        if self.dash_k and self.dash_lr == 0:
            raise InputError(
                "--dash_lr 0 never moves the shifts that the dash is about; give a rate, or --dash_k 0 for plain LoRA"
            )

    def dash_config(self, rank: int, target: str | list[str], dash_k: int | None = None) -> DashConfig:
        """DashConfig of these settings, with the base's `rank` and `target` in. Raises InputError."""
        k = self.dash_k if dash_k is None else dash_k
        try:
            return DashConfig(rank, self.lora_alpha, k, target, self.lora_dropout, self.dash_eps, self.dash_selection)
        except ValueError as error:
            raise InputError(str(error)) from None

    @property
    def target(self) -> str | list[str] | None:
        """DashConfig's target: a single word is a preset or a regular expression, several are suffixes."""
        if len(self.lora_target) == 1:
            return self.lora_target[0]
        return list(self.lora_target) or None


@dataclass
class OptimArgs:
    """The optimizer, by the names of diffusers' scripts."""

    learning_rate: float | None = option(None, OPTIM, "learning rate", shown_default="the base's own")
    optimizer: str = option("adamw", OPTIM, "optimizer", choices=("adamw", "prodigy"))
    use_8bit_adam: bool = option(False, OPTIM, "AdamW of bitsandbytes (needs the pip extra 8bit)")
    adam_beta1: float = option(0.9, OPTIM, "beta1")
    adam_beta2: float = option(0.999, OPTIM, "beta2")
    adam_weight_decay: float = option(1e-2, OPTIM, "weight decay")
    adam_epsilon: float = option(1e-8, OPTIM, "epsilon")
    max_grad_norm: float | None = option(1.0, OPTIM, "clip gradients to this norm; none turns clipping off")

    def check_optim(self) -> None:
        """Raises InputError for a value out of its range and for settings that contradict each other."""
        at_least(self, 0, "learning_rate", "adam_weight_decay")
        positive(self, "max_grad_norm", "adam_epsilon")
        below_one(self, "adam_beta1", "adam_beta2")
        if self.optimizer == "prodigy" and self.learning_rate is not None and self.learning_rate < _LEAST_FACTOR:
            raise InputError(
                f"--learning_rate is {self.learning_rate:g}, which with --optimizer prodigy is a factor on the rate "
                "that Prodigy finds, and leaves nothing of it; leave it out, or give 1"
            )
        if self.use_8bit_adam and self.optimizer != "adamw":
            raise InputError(f"--use_8bit_adam is a kind of adamw; leave it out, or --optimizer {self.optimizer}")


@dataclass
class OutputArgs:
    """Where a run writes, and which tracker it tells."""

    output_dir: str = option("dash-out", OUTPUT, "folder for all files of the run", metavar="DIR")
    report_to: str | None = option(
        None, OUTPUT, "tracker: tensorboard, wandb, comet_ml, all, none (needs the pip extra trackers)", metavar="NAME"
    )
    logging_dir: str = option("logs", OUTPUT, "folder of the tracker's files, inside output_dir", metavar="DIR")

    def check_output(self) -> None:
        """Raises InputError for a folder that cannot be one."""
        if self.report_to == "none":
            self.report_to = None
        if self.output_dir and Path(self.output_dir).expanduser().is_file():
            raise InputError(f"--output_dir {self.output_dir} is a file; give a folder")


@dataclass
class MachineArgs:
    """What computes, and how."""

    mixed_precision: str | None = option(
        None, MACHINE, "compute in half precision", choices=("no", "fp16", "bf16"), shown_default="accelerate's setting"
    )
    compile: bool = option(
        False,
        MACHINE,
        "compile the trained network with torch.compile: takes minutes at first, then steps may be faster",
    )
    allow_tf32: bool = option(False, MACHINE, "use TF32 for matrix products on Ampere and newer GPUs")


def at_least(settings: Any, least: float, *names: str) -> None:
    """Raises InputError where a setting that is given is below `least`, or beyond any use."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not least <= value:
            raise InputError(f"--{name} is {value}; it takes a number of {least} or more")
        if value is not None and value > _LARGEST:
            raise InputError(f"--{name} is {value}; it takes a number up to {_LARGEST:g}")


def positive(settings: Any, *names: str) -> None:
    """Raises InputError where a setting that is given is no finite number above 0."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name} is {value}; it takes a number above 0")


def below_one(settings: Any, *names: str) -> None:
    """Raises InputError where a setting is not within [0, 1)."""
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise InputError(f"--{name} is {getattr(settings, name)}; it takes a number from 0 to below 1")


def read_prompts(prompts: Sequence[str], flag: str) -> list[str]:
    """Prompts, with the lines of a text file in the place of its name. Raises InputError."""
    found: list[str] = []
    for prompt in prompts:
        is_file = prompt.endswith(".txt") and " " not in prompt.strip()
        found += read_lines(Path(prompt).expanduser(), flag) if is_file else [prompt]
    return found


def typed_prompts(prompts: Sequence[str], flag: str) -> list[str]:
    """The same of prompts on a command line that argparse has read. Raises InputError where quotes are missing too."""
    fault = unquoted(flag, prompts)
    if fault:
        raise InputError(fault)
    return read_prompts(prompts, flag)


def read_lines(path: Path, flag: str) -> list[str]:
    """The lines of a text file that are not empty. Raises InputError, which names the flag that gave the file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {flag} {path} ({error}); give a UTF-8 text with a prompt a line") from None
    if not any(lines):
        raise InputError(f"{flag} {path} is empty; give a text with a prompt a line")
    return [line for line in lines if line]

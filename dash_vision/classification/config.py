# ruff: noqa: RUF009 (option() makes a dataclass field)
"""The settings of VTAB runs: what `train_vtab.py` takes on its command line, and one run among those it asks for."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..core.config import DashConfig
from ..files.errors import InputError
from ..miniature import MINIATURE
from ..runs.settings import (
    DASH,
    MACHINE,
    OPTIM,
    OUTPUT,
    DashArgs,
    MachineArgs,
    OptimArgs,
    OutputArgs,
    at_least,
    below_one,
    option,
    positive,
)
from ..runs.tasks import Task, find_tasks, plain
from ..runs.words import Foreign
from .other_trainers import FOREIGN

METHODS = ("dash", "lora", "linear", "full", "bitfit")
OURS = ("dash", "lora")  # with a native adapter
POOLS = ("token", "avg", "map")
NORMALIZATIONS = ("checkpoint", "imagenet", "half", "none")
RULES = ("best_val", "last")
DEFAULT_MODEL = "vit_base_patch16_224.augreg_in21k"
DEFAULT_RANK, DEFAULT_TARGET = 8, "vit-blocks"
SEARCHABLE = (
    "learning_rate",
    "adam_weight_decay",
    "rank",
    "lora_alpha",
    "dash_k",
    "prelaunch_steps",
    "dash_lr",
    "dash_eps",
)
# Settings that make no difference to a run without a dash, and to one without an adapter of this package.
_OF_DASH = ("dash_k", "prelaunch_steps", "dash_lr", "dash_selection", "dash_eps")
_OF_ADAPTERS = ("rank", "lora_alpha", "lora_dropout", "lora_target")

RUNS, BASE, DATA, TRAIN, CHOICE = "what to run", "base model", "data", "training", "model selection"


@dataclass
class TaskArgs:
    """Which runs, on which base and data."""

    task: list[str] = option(
        [],
        RUNS,
        "names or aliases of tasks, names of groups, all (the 19 tasks), or embedded (the five synthetic ones)",
        aliases=["tasks"],
        metavar="TASK",
        shown_default="none; needed to train",
    )
    methods: list[str] = option(
        [],
        RUNS,
        "dash (LoRA-Dash), lora, linear (linear probing), full (full fine-tuning), bitfit (biases alone)",
        aliases=["method"],
        metavar="METHOD",
        shown_default="dash",
    )
    peft_config: list[str] = option(
        [],
        RUNS,
        "JSON files of PEFT configurations (DoRA, PiSSA, OFT, ...), each run as a method of its own",
        metavar="FILE",
    )
    seeds: list[int] = option(
        [0],
        RUNS,
        "seeds, one run each; a seed decides the head, the adapter and the order of images",
        aliases=["seed"],
        shown_default="0",
    )
    check_data: bool = option(False, RUNS, "verify the data of --task, or without it of every task present, and exit")
    download: bool = option(False, RUNS, "fetch the data of all 19 tasks into --data_root, check it, and exit")
    report: bool = option(False, RUNS, "only print the table of what --output_dir holds, and exit")
    print_commands: bool = option(False, RUNS, "print a command for each run that is not done yet, and exit")
    executor: str = option(
        "local", RUNS, "local: one run after another; ray: on a Ray cluster", choices=["local", "ray"]
    )

    model: str | None = option(
        None,
        BASE,
        "name of any timm ViT, DeiT, DINOv2, EVA, ...; or miniature, the ViT shipped with this package",
        metavar="NAME",
        shown_default=f"{DEFAULT_MODEL}; miniature for embedded tasks",
    )
    checkpoint: str | None = option(
        None, BASE, "local weights for --model: .safetensors, or .npz of Google's ViTs", metavar="FILE"
    )
    revision: str | None = option(
        None, BASE, "hub revision (branch, tag or commit) of --model's weights", shown_default="the newest"
    )
    random_weights: bool = option(
        False, BASE, "use random weights instead of pretrained ones; only for tests of speed and of the setup"
    )
    global_pool: str | None = option(
        None,
        BASE,
        "what the classifier reads: the class token, the mean of all tokens (avg), or attention over them (map)",
        choices=POOLS,
        shown_default="the model's own",
    )
    image_size: int | None = option(None, BASE, "side of the model's input in pixels", shown_default="the model's own")
    normalization: str = option(
        "checkpoint",
        BASE,
        "mean and standard deviation of the input: the checkpoint's own, ImageNet's, 0.5/0.5, or none",
        choices=NORMALIZATIONS,
    )

    data_root: str | None = option(
        None, DATA, "folder that holds the tasks' folders", metavar="DIR", shown_default="$VTAB_ROOT or data/vtab-1k"
    )
    data_revision: str | None = option(
        None, DATA, "hub revision (branch, tag or commit) of what --download fetches", shown_default="the newest"
    )
    cache_dir: str | None = option(
        None,
        DATA,
        "folder for decoded images and decomposed base weights; none keeps nothing on disk",
        metavar="DIR",
        shown_default="$DASH_VISION_CACHE or ~/.cache/dash_vision",
    )


@dataclass
class RecipeArgs:
    """How long a run trains, and how its epoch and settings are chosen."""

    epochs: int | None = option(None, TRAIN, "number of epochs", shown_default="100; 16 for embedded tasks")
    warmup_epochs: int | None = option(None, TRAIN, "epochs of linear warm-up", shown_default="a tenth of the epochs")
    train_batch_size: int = option(64, TRAIN, "images per optimizer step and process")
    drop_path: float = option(0.1, TRAIN, "stochastic depth of the base (linear probing: 0)")

    selection: str = option(
        "best_val",
        CHOICE,
        "epoch at which the retraining ends: the best on the 200 validation images (val200; ties: lower loss), or the "
        "last",
        choices=RULES,
    )
    search: list[str] = option(
        [],
        CHOICE,
        f"settings to choose on val200 as well, as NAME=VALUE,VALUE; names: {', '.join(SEARCHABLE)}",
        metavar="NAME=V,V",
    )
    val_only: bool = option(False, CHOICE, "stop after val200: do not retrain, and do not read the test images")


@dataclass
class VtabConfig(MachineArgs, OutputArgs, OptimArgs, RecipeArgs, DashArgs, TaskArgs):
    """All settings; None means: decided by task or method, as the help says. Raises InputError for impossible ones."""

    rank: int | None = option(None, DASH, "rank of the LoRA update (dash, lora)", shown_default=str(DEFAULT_RANK))
    prelaunch_steps: int | None = option(
        100, DASH, "optimizer steps of plain LoRA before the singular values are chosen", shown_default="100"
    )
    lora_target: list[str] = option(
        [],
        DASH,
        "layers to adapt: a preset, module-name suffixes, or one regular expression",
        shown_default=DEFAULT_TARGET,
    )
    learning_rate: float | None = option(
        None,
        OPTIM,
        "peak learning rate",
        aliases=["lr"],
        shown_default="1e-3; 1e-4 for full; ten times as much for the miniature; 1 for prodigy",
    )
    adam_weight_decay: float = option(1e-4, OPTIM, "weight decay")
    max_grad_norm: float | None = option(None, OPTIM, "clip gradients to this norm; none turns clipping off")

    output_dir: str = option("runs/vtab", OUTPUT, "results go to OUTPUT_DIR/TASK/METHOD/seed-N", metavar="DIR")
    tag: str | None = option(None, OUTPUT, "suffix of the method's name, to tell runs with different settings apart")
    overwrite: bool = option(False, OUTPUT, "repeat finished runs, and restart interrupted ones from the beginning")
    checkpoint_every: int = option(10, OUTPUT, "epochs between checkpoints (one is written on Ctrl-C too)")
    keep_every: int = option(
        0,
        OUTPUT,
        "epochs of the retraining between adapters that are kept in adapters/, for eval directions; 0 for none",
    )

    device: str = option("auto", MACHINE, "where to train: auto, cpu, cuda, cuda:1, mps, ...")
    mixed_precision: str | None = option(
        None,
        MACHINE,
        "compute in half precision",
        choices=("no", "fp16", "bf16"),
        shown_default="the setting of accelerate launch; without one, bf16 on devices that are fast in it",
    )
    allow_tf32: bool = option(True, MACHINE, "use TF32 for matrix products on Ampere and newer GPUs")
    eval_batch_size: int = option(256, MACHINE, "images per forward pass in evaluation")

    FOREIGN: ClassVar[dict[str, Foreign]] = FOREIGN

    def __post_init__(self) -> None:
        self.prelaunch_steps = 100 if self.prelaunch_steps is None else self.prelaunch_steps
        self.check_dash()
        self.check_optim()
        self.check_output()
        at_least(self, 1, "train_batch_size", "eval_batch_size", "checkpoint_every", "epochs", "image_size")
        at_least(self, 0, "keep_every", "warmup_epochs")
        positive(self, "learning_rate")
        below_one(self, "drop_path")
        self._check_runs()
        self._check_kept_adapters()
        _require(not (self.checkpoint and self.random_weights), "give --checkpoint or --random_weights, not both")
        local = self.checkpoint or self.random_weights
        _require(not (self.revision and local), "--revision is of weights from the hub; leave it out, or the other")
        self.dash_config(DEFAULT_RANK if self.rank is None else self.rank, self.target or DEFAULT_TARGET)
        self.candidates()

    def _check_runs(self) -> None:
        """Raises InputError where the runs asked for cannot be told or cannot be."""
        _require(all(seed >= 0 for seed in self.seeds), f"seeds are whole numbers of 0 or more, got {self.seeds}")
        unknown = [method for method in self.methods if method not in METHODS]
        _require(not unknown, f"unknown method {''.join(unknown[:1])!r}; it takes {', '.join(METHODS)}")
        _require(not self.tag or plain(self.tag) != "", f"tag needs letters or digits, got {self.tag!r}")
        for run in self.runs():
            _require(
                run.warmup_epochs < run.epochs,
                f"--warmup_epochs {run.warmup_epochs} leaves nothing of the {run.epochs} epochs of {run.task.name} at "
                "the full rate; shorten it, or raise --epochs",
            )

    def _check_kept_adapters(self) -> None:
        """Raises InputError where --keep_every would keep nothing."""
        if not self.keep_every:
            return
        closed = "--keep_every keeps adapters of the retraining, which --val_only leaves out; give one of the two"
        _require(not self.val_only, closed)
        methods = self.method_names()
        none = f"--keep_every keeps native adapters, and {', '.join(methods)} have none; leave it out"
        _require(bool(set(methods) & set(OURS)), none)

    @staticmethod
    def of_record(path: Path, record: dict[str, Any]) -> dict[str, Any]:
        """The settings of a run by its result.json. Raises InputError."""
        if record["kind"] != "vtab":
            raise InputError(f"{path} is of a run of train_dreambooth.py; give a result.json of train_vtab.py")
        values = dict(record["arguments"])
        task, method, seed, peft = (values.pop(name) for name in ("task", "method", "seed", "peft"))
        if peft is not None:
            raise InputError(
                f"{path} is of {method}, whose PEFT configuration is a file of its own; give --task {task} --seed "
                f"{seed} --peft_config FILE instead"
            )
        if values.get("dash_lr") == values["learning_rate"]:
            del values["dash_lr"]  # it followed, and follows again
        values["train_batch_size"] = values.pop("batch_size") // record["processes"]
        values |= {"task": task, "methods": method, "seeds": seed, "mixed_precision": record["mixed_precision"]}
        tag = record["method"].removeprefix(method).removeprefix("-")
        return values | {"val_only": record["test_accuracy"] is None} | ({"tag": tag} if tag else {})

    def tasks(self) -> list[Task]:
        """The tasks asked for. Raises InputError for an unknown name."""
        return find_tasks(self.task)

    def method_names(self) -> list[str]:
        """The methods asked for: built-in ones, and "peft-<name>" per PEFT configuration file."""
        peft = [f"peft-{plain(Path(file).stem)}" for file in self.peft_config]
        _require(len(set(peft)) == len(peft), f"two --peft_config files are both called {peft[:1]}; rename one")
        return (list(dict.fromkeys(self.methods)) + peft) or ["dash"]

    def runs(self, processes: int = 1) -> list[Run]:
        """Every combination of task, seed and method, each to be done by `processes` together: methods of one task and
        seed stand side by side."""
        order = itertools.product(self.tasks(), dict.fromkeys(self.seeds), self.method_names())
        return [Run(self, task, method, seed, processes) for task, seed, method in order]

    def candidates(self) -> list[dict[str, Any]]:
        """Every combination of the values in --search, as overrides of settings; [{}] without a search."""
        names: list[str] = []
        values: list[list[Any]] = []
        for entry in self.search:
            name, _, listed = entry.partition("=")
            _require(
                name in SEARCHABLE and listed != "",
                f"--search takes NAME=V,V with a NAME of {SEARCHABLE}, got {entry!r}",
            )
            names.append(name)
            values.append([_number(name, text) for text in listed.split(",")])
        combinations: list[dict[str, Any]] = [
            dict(zip(names, combination, strict=True)) for combination in itertools.product(*values)
        ]
        for combination in combinations:
            if combination:
                dataclasses.replace(self, search=[], **combination)
        return combinations


# What a result depends on; where and how fast a run happens changes nothing about it.
_COMPARED_GROUPS = (BASE, DASH, OPTIM, TRAIN, CHOICE)


@dataclass(frozen=True)
class Run:
    """One training among those that a VtabConfig asks for. processes: of accelerate launch, which do it together."""

    settings: VtabConfig
    task: Task
    method: str
    seed: int
    processes: int = 1

    @property
    def label(self) -> str:
        """The method with its tag: what results call it."""
        return f"{self.method}-{self.settings.tag}" if self.settings.tag else self.method

    @property
    def folder(self) -> Path:
        """Where its result goes."""
        return Path(self.settings.output_dir) / self.task.name / self.label / f"seed-{self.seed}"

    @property
    def name(self) -> str:
        """Task, method and seed."""
        return f"{self.task.name} {self.label} seed {self.seed}"

    @property
    def model(self) -> str:
        """The base's name."""
        return self.settings.model or (MINIATURE if self.task.embedded else DEFAULT_MODEL)

    @property
    def epochs(self) -> int:
        """Epochs of the schedule."""
        return self.settings.epochs or (16 if self.task.embedded else 100)

    @property
    def warmup_epochs(self) -> int:
        """Epochs of linear warm-up."""
        given = self.settings.warmup_epochs
        return self.epochs // 10 if given is None else given

    @property
    def batch_size(self) -> int:
        """Images of an optimizer step, over all processes."""
        return self.settings.train_batch_size * self.processes

    @property
    def learning_rate(self) -> float:
        """The peak rate."""
        if self.settings.learning_rate is not None:
            return self.settings.learning_rate
        if self.settings.optimizer == "prodigy":  # it finds the rate itself; this is a factor
            return 1.0
        usual = 1e-4 if self.method == "full" else 1e-3
        return 10 * usual if self.model == MINIATURE else usual

    @property
    def dash_lr(self) -> float:
        """The peak rate of the singular-value shifts."""
        given = self.settings.dash_lr
        return self.learning_rate if given is None else given

    @property
    def drop_path(self) -> float:
        """Stochastic depth of the base."""
        return 0.0 if self.method == "linear" else self.settings.drop_path

    @property
    def rank(self) -> int:
        """Of the LoRA update."""
        return DEFAULT_RANK if self.settings.rank is None else self.settings.rank

    @property
    def dash_k(self) -> int:
        """Directions of a layer; 0 for every method without a dash."""
        return self.settings.dash_k if self.method == "dash" else 0

    @property
    def prelaunch_steps(self) -> int:
        """Optimizer steps of plain LoRA before the dash."""
        return self.settings.prelaunch_steps or 100

    @property
    def dash_config(self) -> DashConfig:
        """The adapter's configuration (dash, lora)."""
        return self.settings.dash_config(self.rank, self.settings.target or DEFAULT_TARGET, self.dash_k)

    @property
    def peft_file(self) -> Path | None:
        """The PEFT configuration of a "peft-..." method."""
        names = [f"peft-{plain(Path(file).stem)}" for file in self.settings.peft_config]
        return Path(self.settings.peft_config[names.index(self.method)]) if self.method in names else None

    def uses(self, setting: str) -> bool:
        """Whether a setting makes a difference to this run's method."""
        if setting in _OF_DASH:
            return self.method == "dash"
        return self.method in OURS or setting not in _OF_ADAPTERS

    def candidates(self) -> list[dict[str, Any]]:
        """The overrides of --search that make a difference to this run's method, each once."""
        candidates: list[dict[str, Any]] = []
        for overrides in self.settings.candidates():
            kept = {name: value for name, value in overrides.items() if self.uses(name)}
            if kept not in candidates:
                candidates.append(kept)
        return candidates

    def with_overrides(self, overrides: dict[str, Any]) -> Run:
        """The same run under a candidate of --search."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, search=[], **overrides))

    def identity(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-ready: equal for two runs exactly if they are the same run."""
        fields = [f.name for f in dataclasses.fields(VtabConfig) if f.metadata["group"] in _COMPARED_GROUPS]
        left_out = ("val_only", "train_batch_size")
        values = {name: getattr(self.settings, name) for name in fields if self.uses(name) and name not in left_out}
        resolved = {
            name: getattr(self, name)
            for name in ("model", "epochs", "warmup_epochs", "batch_size", "learning_rate", "drop_path")
        }
        adapter = {name: getattr(self, name) for name in ("rank", "dash_lr") if self.uses(name)}
        if self.uses("lora_target"):
            adapter["lora_target"] = self.settings.lora_target or [DEFAULT_TARGET]
        peft = self.peft_file
        named = {
            "task": self.task.name,
            "method": self.method,
            "seed": self.seed,
            "peft": read_peft_config(peft) if peft else None,
        }
        return {**named, **values, **resolved, **adapter}


def read_peft_config(path: Path) -> dict[str, Any]:
    """The JSON object of a PEFT configuration file. Raises InputError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no PEFT configuration {path}; check --peft_config") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no JSON file ({error}); --peft_config takes one as PEFT's save_pretrained writes"
        ) from None
    if not isinstance(content, dict) or "peft_type" not in content:
        raise InputError(
            f'{path} has no "peft_type"; a minimal file is {{"peft_type": "LORA", "use_dora": true, "r": 8}}'
        )
    return content


def _number(name: str, text: str) -> int | float:
    kind = int if name in ("prelaunch_steps", "dash_k", "rank") else float
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"--search {name}: {text!r} is no {'whole number' if kind is int else 'number'}") from None


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InputError(sentence)

# ruff: noqa: RUF009 (option() makes a dataclass field)
"""The settings of VTAB runs: what `train_vtab.py` takes on its command line, and one run among those it asks for."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import SELECTIONS, DashConfig
from ..files.errors import InputError
from ..miniature import MINIATURE
from ..runs.settings import option
from ..runs.tasks import Task, find_tasks, plain

METHODS = ("dash", "lora", "linear", "full", "bitfit")
OURS = ("dash", "lora")  # with a native adapter
NORMALIZATIONS = ("checkpoint", "imagenet", "half", "none")
RULES = ("best_val", "last")
DEFAULT_MODEL = "vit_base_patch16_224.augreg_in21k"
SEARCHABLE = ("learning_rate", "weight_decay", "alpha", "dash_lr_scale", "prelaunch_steps", "dash_k", "rank", "eps")

RUNS, BASE, DATA, TUNE, TRAIN, CHOICE, OUTPUT, MACHINE = (
    "what to run",
    "base model",
    "data",
    "method",
    "training",
    "model selection",
    "output",
    "machine",
)


@dataclass
class VtabConfig:
    """All settings; None means: decided by task or method, as the help says. Raises InputError for impossible ones."""

    task: list[str] = option(
        [],
        RUNS,
        "task names or aliases, group names, all (the 19) or embedded (the five drawn ones)",
        aliases=["tasks"],
        metavar="TASK",
        shown_default="required",
    )
    methods: list[str] = option(
        [], RUNS, f"{', '.join(METHODS)}", aliases=["method"], metavar="METHOD", shown_default="dash"
    )
    peft_config: list[str] = option(
        [],
        RUNS,
        "JSON files of PEFT configurations (DoRA, PiSSA, OFT, ...), each run as a method of its own",
        metavar="FILE",
    )
    seeds: list[int] = option(
        [0], RUNS, "seeds of head, adapter and order of images", aliases=["seed"], shown_default="0"
    )
    check_data: bool = option(False, RUNS, "verify the data of --task (default: of every task present) and exit")
    download: bool = option(False, RUNS, "fetch the data of all 19 tasks into --data_root, check it, and exit")
    report: bool = option(False, RUNS, "only print the table of what --output_dir holds, and exit")
    print_commands: bool = option(False, RUNS, "print one command per run that is not done, and exit")
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
    random_weights: bool = option(False, BASE, "leave the base untrained: for tests of speed and plumbing only")
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

    rank: int = option(8, TUNE, "rank of the LoRA update (dash, lora)")
    alpha: float | None = option(None, TUNE, "LoRA's alpha: the update is scaled by alpha / rank", shown_default="rank")
    dash_k: int = option(8, TUNE, "task-specific directions per layer (dash)")
    prelaunch_steps: int = option(100, TUNE, "optimizer steps before the directions are chosen (dash)")
    dash_selection: str = option(
        "change_rate", TUNE, "how directions are chosen; others are controls", choices=SELECTIONS
    )
    dash_lr_scale: float = option(1.0, TUNE, "learning rate of the singular-value shifts, as a multiple")
    eps: float = option(1e-6, TUNE, "added to the singular value that a change rate is divided by")
    target: str = option("vit-blocks", TUNE, "layers to adapt: preset, suffix or regular expression (dash, lora)")
    dropout: float = option(0.0, TUNE, "dropout on the input of the update (dash, lora)")

    epochs: int | None = option(None, TRAIN, "epochs of the schedule", shown_default="100; 16 for embedded tasks")
    warmup_epochs: int | None = option(None, TRAIN, "epochs of linear warm-up", shown_default="a tenth of the epochs")
    batch_size: int = option(64, TRAIN, "images per optimizer step, over all processes")
    learning_rate: float | None = option(
        None,
        TRAIN,
        "AdamW's peak rate",
        shown_default="1e-3; full: 1e-4; the miniature: ten times that",
        aliases=["lr"],
    )
    weight_decay: float = option(1e-4, TRAIN, "AdamW's weight decay")
    drop_path: float = option(0.1, TRAIN, "stochastic depth of the base (linear probing: 0)")

    selection: str = option(
        "best_val", CHOICE, "epoch to retrain to: the best on val200 (ties: lower loss), or the last", choices=RULES
    )
    search: list[str] = option(
        [],
        CHOICE,
        f"settings to choose on val200 too, as NAME=VALUE,VALUE; names: {', '.join(SEARCHABLE)}",
        metavar="NAME=V,V",
    )
    val_only: bool = option(False, CHOICE, "stop after val200: no retraining, and the test images stay closed")

    output_dir: str = option("runs/vtab", OUTPUT, "results go to OUTPUT_DIR/TASK/METHOD/seed-N", metavar="DIR")
    tag: str | None = option(None, OUTPUT, "added to the method's name: tells runs with other settings apart")
    overwrite: bool = option(False, OUTPUT, "run again what is done, and start anew what was interrupted")
    checkpoint_every: int = option(10, OUTPUT, "epochs between checkpoints (one is written on Ctrl-C too)")
    keep_every: int = option(
        0, OUTPUT, "epochs of the retraining between adapters kept in adapters/, which eval directions shows; 0 is none"
    )

    device: str = option("auto", MACHINE, "auto, cpu, cuda, cuda:1, mps, ...")
    mixed_precision: str = option(
        "auto",
        MACHINE,
        "autocast; auto is bf16 on a GPU, and on a CPU made for it",
        choices=["auto", "no", "bf16"],
    )
    compile: bool = option(False, MACHINE, "compile the model with torch.compile")
    eval_batch_size: int = option(256, MACHINE, "images per forward pass in evaluation")

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("checkpoint_every", 1), ("prelaunch_steps", 1)):
            _require(getattr(self, name) >= least, f"{name} is {least} or more, got {getattr(self, name)}")
        for name in ("epochs", "image_size", "learning_rate"):
            value = getattr(self, name)
            _require(value is None or 0 < value <= 1e30, f"{name} is a number above 0, up to 1e30, got {value}")
        _require(self.keep_every >= 0, f"keep_every is 0 (keep none) or more, got {self.keep_every}")
        if self.keep_every:
            closed = "--keep_every keeps adapters of the retraining, which --val_only leaves out; give one of the two"
            _require(not self.val_only, closed)
            methods = self.method_names()
            none = f"--keep_every keeps native adapters, and {', '.join(methods)} have none; leave it out"
            _require(bool(set(methods) & set(OURS)), none)
        for name in ("weight_decay", "dash_lr_scale"):
            _require(0 <= getattr(self, name) <= 1e30, f"{name} is 0 or more, up to 1e30, got {getattr(self, name)}")
        _require(0 <= self.drop_path < 1, f"drop_path is a probability in [0, 1), got {self.drop_path}")
        _require(self.warmup_epochs is None or self.warmup_epochs >= 0, "warmup_epochs is 0 or more")
        _require(all(seed >= 0 for seed in self.seeds), f"seeds are whole numbers of 0 or more, got {self.seeds}")
        unknown = [method for method in self.methods if method not in METHODS]
        _require(not unknown, f"unknown method {''.join(unknown[:1])!r}; it takes {', '.join(METHODS)}")
        _require(not (self.checkpoint and self.random_weights), "give --checkpoint or --random_weights, not both")
        local = self.checkpoint or self.random_weights
        _require(not (self.revision and local), "--revision is of weights from the hub; leave it out, or the other")
        _require(not self.tag or plain(self.tag) != "", f"tag needs letters or digits, got {self.tag!r}")
        try:
            self.dash_config(self.dash_k)
            self.tasks()
        except ValueError as error:
            raise InputError(str(error)) from None
        self.candidates()

    def tasks(self) -> list[Task]:
        """The tasks asked for. Raises ValueError for an unknown name."""
        return find_tasks(self.task)

    def method_names(self) -> list[str]:
        """The methods asked for: built-in ones, and "peft-<name>" per PEFT configuration file."""
        peft = [f"peft-{plain(Path(file).stem)}" for file in self.peft_config]
        _require(len(set(peft)) == len(peft), f"two --peft_config files are both called {peft[:1]}; rename one")
        return (list(dict.fromkeys(self.methods)) + peft) or ["dash"]

    def runs(self) -> list[Run]:
        """Every combination of task, seed and method: methods of one task and seed stand side by side."""
        order = itertools.product(self.tasks(), dict.fromkeys(self.seeds), self.method_names())
        return [Run(self, task, method, seed) for task, seed, method in order]

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

    def dash_config(self, dash_k: int) -> DashConfig:
        """The adapter's configuration with `dash_k` directions."""
        return DashConfig(self.rank, self.alpha, dash_k, self.target, self.dropout, self.eps, self.dash_selection)


# What a result depends on; where and how fast a run happens changes nothing about it.
_COMPARED_GROUPS = (BASE, TUNE, TRAIN, CHOICE)


@dataclass(frozen=True)
class Run:
    """One training among those that a VtabConfig asks for."""

    settings: VtabConfig
    task: Task
    method: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where its result goes."""
        s = self.settings
        method = f"{self.method}-{s.tag}" if s.tag else self.method
        return Path(s.output_dir) / self.task.name / method / f"seed-{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.task.name} {self.folder.parent.name} seed {self.seed}"

    @property
    def model(self) -> str:
        return self.settings.model or (MINIATURE if self.task.embedded else DEFAULT_MODEL)

    @property
    def epochs(self) -> int:
        return self.settings.epochs or (16 if self.task.embedded else 100)

    @property
    def warmup_epochs(self) -> int:
        given = self.settings.warmup_epochs
        return min(self.epochs // 10 if given is None else given, self.epochs)

    @property
    def learning_rate(self) -> float:
        usual = 1e-4 if self.method == "full" else 1e-3
        return self.settings.learning_rate or (10 * usual if self.model == MINIATURE else usual)

    @property
    def drop_path(self) -> float:
        return 0.0 if self.method == "linear" else self.settings.drop_path

    @property
    def peft_file(self) -> Path | None:
        """The PEFT configuration of a "peft-..." method."""
        names = [f"peft-{plain(Path(file).stem)}" for file in self.settings.peft_config]
        return Path(self.settings.peft_config[names.index(self.method)]) if self.method in names else None

    def candidates(self) -> list[dict[str, Any]]:
        """The overrides of --search that make a difference to this run's method, each once."""
        without: tuple[str, ...] = ()
        if self.method != "dash":
            without = ("prelaunch_steps", "dash_k", "dash_lr_scale", "eps")
        if self.method not in OURS:
            without += ("rank", "alpha")
        found: list[dict[str, Any]] = []
        for overrides in self.settings.candidates():
            kept = {name: value for name, value in overrides.items() if name not in without}
            if kept not in found:
                found.append(kept)
        return found

    def with_overrides(self, overrides: dict[str, Any]) -> Run:
        """The same run under a candidate of --search."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, search=[], **overrides))

    def identity(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-ready: equal for two runs exactly if they are the same run."""
        fields = [f.name for f in dataclasses.fields(VtabConfig) if f.metadata["group"] in _COMPARED_GROUPS]
        values = {name: getattr(self.settings, name) for name in fields if name != "val_only"}
        resolved = {
            "model": self.model,
            "epochs": self.epochs,
            "warmup_epochs": self.warmup_epochs,
            "learning_rate": self.learning_rate,
            "drop_path": self.drop_path,
        }
        peft = self.peft_file
        named = {
            "task": self.task.name,
            "method": self.method,
            "seed": self.seed,
            "peft": read_peft_config(peft) if peft else None,
        }
        return {**named, **values, **resolved}


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

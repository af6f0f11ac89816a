"""What a run will do: the user's settings after the base's defaults, with a number wherever one is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bases.noise import DDPM
from ..files.errors import InputError
from ..measures.names import SAMPLING_STEPS
from ..pictures.crops import make_buckets
from .config import PRELAUNCH_STEPS, STEADY, DreamBoothConfig, check_lengths, decisive_settings, prelaunch_steps
from .long_prompts import count_chunks
from .period import usual_period
from .prompts import Prompts, default_validation_prompts

if TYPE_CHECKING:
    from ..bases.family import Target
    from ..bases.loading import Base

_FROM_BASE = (
    *("rank", "learning_rate", "lr_scheduler", "max_train_steps", "train_batch_size"),
    *("num_inference_steps", "guidance_scale"),
)


@dataclass(frozen=True)
class Plan:
    """The settings of a run on a base. settings: as the user gave them; what is None there stands resolved here.

    epoch_steps: optimizer steps in which every picture of the subject is seen `repeats` times. validation_steps: 0 for
    none on the way; evaluate_every: None for none at all. chunks: that a caption is read in. target: DashConfig's, for
    the denoiser. validation_prompts: the columns of samples.png before they are repeated. output, class_folder: where
    the run writes, and where the class pictures are.
    """

    settings: DreamBoothConfig
    prompts: Prompts
    output: Path
    class_folder: Path
    validation_prompts: tuple[str, ...]
    resolution: int
    rank: int
    lora_target: list[str]
    target: Target
    learning_rate: float
    text_encoder_lr: float
    dash_lr: float
    lr_scheduler: str
    max_train_steps: int
    prelaunch_steps: int
    validation_steps: int
    evaluate_every: int | None
    epoch_steps: int
    chunks: int
    train_batch_size: int
    num_inference_steps: int
    guidance_scale: float

    def arguments(self) -> dict[str, Any]:
        """Every setting but secrets by its name, resolved; JSON-ready."""
        return {name: getattr(self, name, value) for name, value in self.settings.to_dict().items()}

    @property
    def columns(self) -> list[str]:
        """The prompt of every column of samples.png."""
        return [prompt for prompt in self.validation_prompts for _ in range(self.settings.num_validation_images)]

    def identity(self) -> dict[str, Any]:
        """The settings that a checkpoint and the run that resumes from it must agree in."""
        names = decisive_settings()
        if self.lr_scheduler not in STEADY:
            names.append("max_train_steps")  # the rate's course depends on it
        arguments = self.arguments()
        # Other rates are derived from this one, so that a difference is told of it first.
        return {"learning_rate": arguments["learning_rate"]} | {name: arguments[name] for name in names}

    def taken(self) -> list[str]:
        """What the user left to the base, as "name value"."""
        left = [name for name in ("resolution", *_FROM_BASE) if getattr(self.settings, name) is None]
        values = {name: getattr(self, name) for name in left}
        return [f"{name} {v if isinstance(v, str) else f'{v:g}'}" for name, v in values.items()]

    def notes(self) -> list[str]:
        """What the user should know of the numbers that were derived."""
        settings, notes = self.settings, list(self.settings.notes)
        if settings.num_train_epochs is not None and settings.max_train_steps is None:
            notes.append(
                f"{settings.num_train_epochs} epochs of {self.epoch_steps} steps each are {self.max_train_steps} steps"
            )
        if settings.dash_k and settings.prelaunch_steps is None and self.prelaunch_steps < PRELAUNCH_STEPS:
            notes.append(
                f"the run has no more than {PRELAUNCH_STEPS} steps, so the dash comes after a fifth of them, "
                f"{self.prelaunch_steps}; --prelaunch_steps gives another number"
            )
        if settings.dash_k and settings.lr_warmup_steps >= self.prelaunch_steps:
            lengths = f"--lr_warmup_steps {settings.lr_warmup_steps}, --prelaunch_steps {self.prelaunch_steps}"
            notes.append(f"the learning rate still rises when the dash is launched: {lengths}")
        for name, every in self._periods():
            if every > self.max_train_steps:
                unit = f" ({self.validation_steps} steps)" if name == "validation_epochs" else ""
                longer = (
                    f"--{name} {getattr(settings, name)}{unit} is longer than the run of {self.max_train_steps} steps"
                )
                comes = "only its end is measured" if name == "evaluate_every" else "nothing comes of it"
                notes.append(f"{longer}, so that {comes}")
        return notes

    def _periods(self) -> list[tuple[str, int]]:
        """Settings that ask for something every so many steps, and the steps."""
        validation = "validation_epochs" if self.settings.validation_epochs is not None else "validation_steps"
        return [
            ("save_lora_every", self.settings.save_lora_every),
            ("evaluate_every", self.settings.evaluate_every or 0),
            (validation, self.validation_steps),
        ]


def make_plan(settings: DreamBoothConfig, prompts: Prompts, base: Base, pictures: int = 1, processes: int = 1) -> Plan:
    """Fill in what the user left to the base. pictures: of the subject, each as often as its folder's repeats say.
    Raises InputError for settings that do not fit the base."""
    values: dict[str, Any] = {name: value for name, value in asdict(base.defaults).items() if name in _FROM_BASE}
    values["resolution"] = base.resolution
    if settings.optimizer == "prodigy":
        values["learning_rate"] = 1.0  # a factor on the rate that Prodigy finds
    for name in values:
        if getattr(settings, name) is not None:
            values[name] = getattr(settings, name)
    if values["lr_scheduler"] == "constant" and settings.lr_warmup_steps:
        values["lr_scheduler"] = "constant_with_warmup"
    batch = values["train_batch_size"] * settings.gradient_accumulation_steps * processes
    epoch = math.ceil(pictures * settings.repeats / batch)
    if settings.num_train_epochs is not None and settings.max_train_steps is None:
        values["max_train_steps"] = settings.num_train_epochs * epoch
    check_lengths(settings, values["max_train_steps"])
    for name in ("dash_lr", "text_encoder_lr"):
        given = getattr(settings, name)
        values[name] = values["learning_rate"] if given is None else given
    output = Path(settings.output_dir).expanduser()
    shown = settings.validation_prompt or default_validation_prompts(prompts)
    names = settings.lora_target or [base.family.default_target]
    plan = Plan(
        settings=settings,
        prompts=prompts,
        output=output,
        class_folder=Path(settings.class_data_dir or output / "class_images").expanduser(),
        validation_prompts=tuple(prompt.replace("{}", prompts.subject or prompts.instance) for prompt in shown),
        lora_target=names,
        prelaunch_steps=prelaunch_steps(settings, values["max_train_steps"]),
        validation_steps=(settings.validation_epochs or 0) * epoch or settings.validation_steps,
        evaluate_every=_evaluate_every(settings, values, batch // processes),
        epoch_steps=epoch,
        chunks=count_chunks(base.family, base.pipeline, settings.max_token_length),
        target=base.family.target(base.pipeline, names[0]) if len(names) == 1 else names,
        **values,
    )
    _check(plan, base)
    return plan


def _evaluate_every(settings: DreamBoothConfig, values: Mapping[str, Any], batch: int) -> int | None:
    """Steps between measurements; None where nothing is measured. batch: pictures of a step, on one process."""
    if settings.holdout is None or settings.evaluate_every is not None:
        return settings.evaluate_every
    return usual_period(
        values["max_train_steps"],
        batch,
        settings.gradient_checkpointing,
        min(values["num_inference_steps"], SAMPLING_STEPS),
        values["guidance_scale"] > 1,
    )


def _check(plan: Plan, base: Base) -> None:
    settings, factor = plan.settings, math.lcm(base.factor, base.family.multiple(base.pipeline))
    if plan.resolution % factor or plan.resolution < 2 * factor:
        raise InputError(
            f"--resolution is {plan.resolution}; this base takes multiples of {factor} from {2 * factor} on"
        )
    _check_largest(plan, base)
    if settings.train_text_encoder and not base.family.trained_encoders:
        raise InputError(
            f"--train_text_encoder does not go with {base.family.name}: {base.family.frozen_text}; leave it out"
        )
    if settings.noise_offset and not isinstance(base.noise(), DDPM):
        raise InputError(f"--noise_offset is for bases trained by DDPM, which {base.family.name} is not; leave it out")


def _check_largest(plan: Plan, base: Base) -> None:
    """Raises InputError for pictures with a side that the denoiser has no positions for."""
    largest, side, cause = base.family.largest(base.pipeline), plan.resolution, ""
    if plan.settings.aspect_ratio_buckets:
        side = max(side, *(width for width, _ in make_buckets(plan.resolution, base.grid)))
        cause = f" and --aspect_ratio_buckets makes pictures of up to {side} pixels along a side"
    if largest is not None and side > largest:
        raise InputError(
            f"--resolution is {plan.resolution}{cause}; this base takes up to {largest} pixels along a side: give a "
            "smaller one"
        )

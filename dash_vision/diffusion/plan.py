"""What a run will do: the user's settings after the base's defaults, with a number wherever one is needed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.errors import InputError
from .config import DECISIVE, MAY_CHANGE, DreamBoothConfig
from .prompts import Prompts, default_validation_prompts

if TYPE_CHECKING:
    from ..bases.family import Target
    from ..bases.loading import Base

_FROM_BASE = ("rank", "learning_rate", "max_train_steps", "train_batch_size", "num_inference_steps", "guidance_scale")


@dataclass(frozen=True)
class Plan:
    """The settings of a run on a base. settings: as the user gave them; what is None there stands resolved here.

    target: DashConfig's, for the denoiser. validation_prompts: the columns of samples.png before they are repeated.
    output, class_folder: where the run writes, and where the class pictures are.
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
    max_train_steps: int
    train_batch_size: int
    num_inference_steps: int
    guidance_scale: float

    def arguments(self) -> dict[str, Any]:
        """Every setting by its name, resolved; JSON-ready."""
        return {f.name: getattr(self, f.name, getattr(self.settings, f.name)) for f in fields(self.settings)}

    def identity(self) -> dict[str, Any]:
        """The settings that a checkpoint and the run that resumes from it must agree in."""
        settings = self.settings
        names = [f.name for f in fields(settings) if f.metadata["group"] in DECISIVE and f.name not in MAY_CHANGE]
        if settings.lr_scheduler not in ("constant", "constant_with_warmup"):
            names.append("max_train_steps")  # the rate's course depends on it
        arguments = self.arguments()
        # Other rates are derived from this one, so that a difference is told of it first.
        return {"learning_rate": arguments["learning_rate"]} | {name: arguments[name] for name in names}

    def taken(self) -> list[str]:
        """What the user left to the base, as "name value"."""
        numbers = ("resolution", *_FROM_BASE)
        return [f"{name} {getattr(self, name):g}" for name in numbers if getattr(self.settings, name) is None]


def make_plan(settings: DreamBoothConfig, prompts: Prompts, base: Base) -> Plan:
    """Fill in what the user left to the base. Raises InputError for settings that do not fit it."""
    values: dict[str, Any] = {name: value for name, value in asdict(base.defaults).items() if name in _FROM_BASE}
    values["resolution"] = base.resolution
    if settings.optimizer == "prodigy":
        values["learning_rate"] = 1.0  # a factor on the rate that Prodigy finds
    for name in values:
        if getattr(settings, name) is not None:
            values[name] = getattr(settings, name)
    for name in ("dash_lr", "text_encoder_lr"):
        given = getattr(settings, name)
        values[name] = values["learning_rate"] if given is None else given
    output = Path(settings.output_dir).expanduser()
    names = settings.lora_target or [base.family.default_target]
    plan = Plan(
        settings=settings,
        prompts=prompts,
        output=output,
        class_folder=Path(settings.class_data_dir or output / "class_images").expanduser(),
        validation_prompts=tuple(settings.validation_prompt or default_validation_prompts(prompts)),
        lora_target=names,
        target=base.family.target(base.pipeline, names[0]) if len(names) == 1 else names,
        **values,
    )
    _check(plan, base)
    return plan


def _check(plan: Plan, base: Base) -> None:
    settings, factor = plan.settings, math.lcm(base.factor, base.family.multiple(base.pipeline))
    if plan.resolution % factor or plan.resolution < 2 * factor:
        raise InputError(
            f"--resolution is {plan.resolution}; this base takes multiples of {factor} from {2 * factor} on"
        )
    if settings.dash_k and settings.prelaunch_steps >= plan.max_train_steps:
        raise InputError(
            f"--prelaunch_steps {settings.prelaunch_steps} leaves nothing of --max_train_steps {plan.max_train_steps} "
            "for the dash; give fewer of the first, more of the second, or --dash_k 0 for plain LoRA"
        )
    if settings.train_text_encoder and not base.family.trains_text_encoders:
        raise InputError(
            f"--train_text_encoder does not go with {base.family.name}: {base.family.frozen_text}; leave it out"
        )

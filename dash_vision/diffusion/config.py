"""The settings of a DreamBooth run. Names are those of diffusers' DreamBooth scripts wherever these have one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..core.config import SELECTIONS
from ..files.errors import InputError
from ..pictures.folder import subfolder_names
from ..pictures.names import FolderName, name_of
from ..runs.settings import option
from .folders import check_folders

BASE, DATA, DASH, TRAIN, OPTIM, PRIOR, SAVE, SHOW, MACHINE = (
    "base model",
    "pictures and prompts",
    "LoRA-Dash",
    "training",
    "optimizer",
    "prior preservation",
    "output and checkpoints",
    "pictures of the result",
    "machine",
)
_LARGEST = 1e30  # far beyond any use, and far from where float32 overflows
SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)


@dataclass
class DreamBoothConfig:
    """All settings; None means: the base model's family decides (see families.Defaults), or off.

    Raises InputError for a value out of its range and for settings that contradict each other.
    """

    pretrained_model_name_or_path: str | None = option(
        None,
        BASE,
        "hub id, local folder or single .safetensors file of a Stable Diffusion 1.x, 2.x or SDXL model",
        metavar="ID|PATH",
        shown_default="the embedded miniature, 64x64",
    )
    revision: str | None = option(None, BASE, "hub revision (branch, tag or commit) of the base")
    variant: str | None = option(None, BASE, "file variant of the base, such as fp16")
    pretrained_vae_model_name_or_path: str | None = option(
        None, BASE, "another VAE for the base, such as SDXL's fp16-fix", metavar="ID|PATH"
    )
    vae_revision: str | None = option(None, BASE, "hub revision (branch, tag or commit) of that VAE")
    prediction_type: str | None = option(
        None,
        BASE,
        "what the base predicts, where its files do not say it (single files of v-prediction models)",
        choices=("epsilon", "v_prediction"),
        shown_default="the base's own",
    )
    single_file_config: str | None = option(
        None, BASE, "hub id or local folder with the configuration of a single-file base", metavar="ID|PATH"
    )

    instance_data_dir: str = option(
        "",
        DATA,
        "folder with pictures of the subject",
        aliases=["instance_data"],
        metavar="DIR",
        shown_default="required",
    )
    instance_prompt: str | None = option(
        None, DATA, "prompt that names the subject", shown_default="from the folder's name: a photo of sks cat"
    )
    resolution: int | None = option(
        None, DATA, "side of the training pictures in pixels", shown_default="the base's own"
    )
    center_crop: bool = option(False, DATA, "cut the centre instead of a random place")
    random_flip: bool = option(False, DATA, "also train on mirrored pictures")
    aspect_ratio_buckets: bool = option(False, DATA, "keep pictures' shapes instead of cutting squares")
    num_crop_variants: int = option(8, DATA, "random crops of each picture that are encoded and cached")
    use_captions: bool = option(True, DATA, "use NAME.txt, NAME.caption, metadata.jsonl or .csv as prompts")
    latent_cache_dir: str | None = option(
        None, DATA, "keep encoded pictures in this folder for later runs", metavar="DIR"
    )

    rank: int = option(4, DASH, "rank of the LoRA update")
    lora_alpha: float | None = option(None, DASH, "the update is scaled by lora_alpha / rank", shown_default="rank")
    lora_dropout: float = option(0.0, DASH, "dropout on the update's input")
    dash_k: int = option(8, DASH, "task-specific directions per layer; 0 trains plain LoRA")
    prelaunch_steps: int = option(100, DASH, "optimizer steps of plain LoRA before the dash")
    dash_selection: str = option(
        "change_rate", DASH, "how directions are chosen; others are controls", choices=SELECTIONS
    )
    dash_eps: float = option(1e-6, DASH, "added to the singular values that change rates are divided by")
    dash_lr: float | None = option(
        None, DASH, "learning rate of the singular-value shifts", shown_default="learning_rate"
    )
    lora_target: list[str] = option(  # noqa: RUF009 (it makes a field)
        ["unet-attention"],
        DASH,
        "layers to adapt: a preset, module-name suffixes, or one regular expression",
        shown_default="unet-attention",
    )

    max_train_steps: int | None = option(None, TRAIN, "optimizer steps", shown_default="the base family's")
    train_batch_size: int | None = option(
        None, TRAIN, "pictures per step and process", shown_default="the base family's"
    )
    gradient_accumulation_steps: int = option(1, TRAIN, "batches per optimizer step")
    gradient_checkpointing: bool = option(False, TRAIN, "save memory, spend time")
    train_text_encoder: bool = option(False, TRAIN, "adapt the text encoder too")
    snr_gamma: float | None = option(None, TRAIN, "min-SNR weighting of the loss (5.0 is usual)")
    seed: int = option(0, TRAIN, "seed of everything random")

    learning_rate: float | None = option(
        None, OPTIM, "learning rate", shown_default="the base family's: SD and SDXL 1e-4"
    )
    text_encoder_lr: float | None = option(
        None, OPTIM, "learning rate of the text encoder's adapter", shown_default="learning_rate"
    )
    scale_lr: bool = option(False, OPTIM, "multiply the rates by processes x batch size x accumulation")
    lr_scheduler: str = option("constant", OPTIM, "course of the learning rate", choices=SCHEDULES)
    lr_warmup_steps: int = option(0, OPTIM, "optimizer steps of warm-up")
    lr_num_cycles: int = option(1, OPTIM, "restarts of cosine_with_restarts")
    lr_power: float = option(1.0, OPTIM, "power of polynomial")
    optimizer: str = option("adamw", OPTIM, "optimizer", choices=("adamw", "prodigy"))
    use_8bit_adam: bool = option(False, OPTIM, "AdamW of bitsandbytes (extra: 8bit)")
    adam_beta1: float = option(0.9, OPTIM, "beta1")
    adam_beta2: float = option(0.999, OPTIM, "beta2")
    adam_weight_decay: float = option(1e-2, OPTIM, "weight decay")
    adam_epsilon: float = option(1e-8, OPTIM, "epsilon")
    max_grad_norm: float = option(1.0, OPTIM, "gradients are clipped to this norm")

    with_prior_preservation: bool = option(False, PRIOR, "also train on pictures of the class in general")
    class_data_dir: str | None = option(
        None,
        PRIOR,
        "folder of class pictures; missing ones are generated in its subfolder generated",
        metavar="DIR",
        shown_default="OUTPUT_DIR/class_images",
    )
    class_prompt: str | None = option(
        None, PRIOR, "prompt of the class", shown_default="the instance prompt without its rare word"
    )
    num_class_images: int = option(100, PRIOR, "class pictures")
    prior_loss_weight: float = option(1.0, PRIOR, "weight of their loss")
    sample_batch_size: int = option(4, PRIOR, "pictures generated at once")

    output_dir: str = option("dash-out", SAVE, "folder for everything the run leaves", metavar="DIR")
    checkpointing_steps: int = option(100, SAVE, "optimizer steps between checkpoints; 0 for none")
    checkpoints_total_limit: int | None = option(2, SAVE, "checkpoints to keep, the oldest go first")
    resume_from_checkpoint: str | None = option(
        None, SAVE, "go on from a checkpoint: latest, its name, or its path", metavar="latest|NAME"
    )
    report_to: str | None = option(
        None, SAVE, "tracker: tensorboard, wandb, comet_ml, all, none (extra: trackers)", metavar="NAME"
    )
    logging_dir: str = option("logs", SAVE, "folder of the tracker's files, inside output_dir", metavar="DIR")

    validation_prompt: list[str] = option(  # noqa: RUF009
        [], SHOW, "prompts of samples.png, its columns", shown_default="the subject in four settings"
    )
    num_validation_images: int = option(1, SHOW, "pictures per prompt")
    validation_steps: int = option(0, SHOW, "also sample every so many steps; 0: only at the end")
    num_inference_steps: int | None = option(None, SHOW, "sampling steps", shown_default="the base family's")
    guidance_scale: float | None = option(None, SHOW, "classifier-free guidance", shown_default="the base family's")

    mixed_precision: str | None = option(
        None, MACHINE, "compute in half precision", choices=("no", "fp16", "bf16"), shown_default="accelerate's setting"
    )
    allow_tf32: bool = option(False, MACHINE, "TF32 matrix products on Ampere and later")
    compile: bool = option(
        False, MACHINE, "compile what is trained with torch.compile: minutes at first, then faster steps"
    )

    def __post_init__(self) -> None:
        _at_least(
            self, 1, "resolution", "rank", "prelaunch_steps", "max_train_steps", "train_batch_size", "num_crop_variants"
        )
        _at_least(
            self, 1, "gradient_accumulation_steps", "num_class_images", "sample_batch_size", "num_validation_images"
        )
        _at_least(self, 1, "num_inference_steps", "checkpoints_total_limit", "lr_num_cycles")
        _at_least(self, 0, "dash_k", "dash_eps", "lr_warmup_steps", "checkpointing_steps", "validation_steps", "seed")
        _at_least(
            self, 0, "learning_rate", "text_encoder_lr", "dash_lr", "adam_weight_decay", "prior_loss_weight", "lr_power"
        )
        for name in ("lora_alpha", "snr_gamma", "max_grad_norm", "adam_epsilon", "guidance_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{name} is {value}; it takes a number above 0")
        for name in ("lora_dropout", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}; it takes a number from 0 to below 1")
        if self.seed >= 2**63:
            raise InputError(f"--seed is {self.seed}; it takes a whole number below 2**63")
        if not self.instance_data_dir:
            raise InputError("--instance_data is missing; give the folder with pictures of your subject")
        if self.use_8bit_adam and self.optimizer != "adamw":
            raise InputError(f"--use_8bit_adam is a kind of adamw; leave it out, or --optimizer {self.optimizer}")
        if not self.with_prior_preservation:
            for name in ("class_data_dir", "class_prompt"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"--{name} does nothing without --with_prior_preservation; add that, or leave it out"
                    )
        for name, idle, remedy in (
            ("text_encoder_lr", not self.train_text_encoder, "add --train_text_encoder"),
            ("dash_lr", self.dash_k == 0, "give --dash_k"),
            ("lr_warmup_steps", self.lr_scheduler == "constant", "give --lr_scheduler constant_with_warmup"),
        ):
            if idle and getattr(self, name):
                raise InputError(f"--{name} does nothing here; {remedy}, or leave it out")
        if self.report_to == "none":
            self.report_to = None
        for name in ("instance_prompt", "class_prompt"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise InputError(f"--{name} is empty; give a prompt, or leave it out")
        if any(not prompt.strip() for prompt in self.validation_prompt):
            raise InputError("--validation_prompt is empty; give a prompt, or leave it out")
        if self.output_dir and Path(self.output_dir).is_file():
            raise InputError(f"--output_dir {self.output_dir} is a file; give a folder")
        check_folders(self.instance_data_dir, self.output_dir, self.class_data_dir)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _at_least(config: DreamBoothConfig, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not least <= value:
            raise InputError(f"--{name} is {value}; it takes a number of {least} or more")
        if value is not None and value > _LARGEST:
            raise InputError(f"--{name} is {value}; it takes a number up to {_LARGEST:g}")


# -- prompts from names

RARE_WORD = "sks"
RARE_WORDS = (RARE_WORD, "ohwx", "zwx")  # those that guides name; a folder's name that begins with one has its own


@dataclass(frozen=True)
class Prompts:
    """What the pictures are called: the subject ("sks cat"), its class ("cat"), and the prompts made of them."""

    instance: str
    class_: str
    subject: str | None = field(default=None)  # None when the user's own prompt has no form we know


def derive_prompts(config: DreamBoothConfig) -> Prompts:
    """Prompts from the folder's name where the user gave none.

    "cat/" gives "a photo of sks cat" and the class prompt "a photo of cat"; "10_sks dog/" gives "a photo of sks dog"
    and "a photo of dog". Raises InputError when a name holds no letters, and for subfolders of several subjects that
    leave the class open.
    """
    names = subfolder_names(config.instance_data_dir) or [name_of(config.instance_data_dir)]
    if config.instance_prompt is None:
        subject, kind = subject_and_class(names[0])
        if not kind:
            raise InputError(
                f"cannot derive a prompt from the folder name of {config.instance_data_dir}; "
                f'give one: --instance_prompt "a photo of {RARE_WORD} cat"'
            )
        instance, class_ = f"a photo of {subject}", config.class_prompt or f"a photo of {kind}"
        kinds = dict.fromkeys(subject_and_class(name)[1] for name in names)
        if config.with_prior_preservation and config.class_prompt is None and len(kinds) > 1:
            raise InputError(
                f"the subfolders of {config.instance_data_dir} are of several classes ({', '.join(kinds)}); give a "
                "--class_prompt that fits all of them, or train one subfolder at a time"
            )
    else:
        instance = " ".join(config.instance_prompt.split())
        class_ = config.class_prompt or " ".join(word for word in instance.split() if word not in RARE_WORDS)
    match = re.fullmatch(r"(?:an? )?(?:photo|picture|image|painting|drawing) of (.+)", instance, re.IGNORECASE)
    subject_in_prompt = match.group(1) if match else None
    if config.with_prior_preservation and class_ == instance:
        raise InputError(
            f'the class prompt would be the instance prompt, "{instance}", and the class would learn the subject\'s '
            'name; give --class_prompt, such as "a photo of a dog"'
        )
    return Prompts(instance, class_, subject_in_prompt)


def subject_and_class(name: FolderName) -> tuple[str, str]:
    """("sks cat", "cat") of the folder "cat".

    The words of "sks cat" and of kohya's "10_sks cat" have their rare word in front: it is kept, and is none of the
    class. A single word of that kind, as in "10_zwx", stands for both, since it tells no class.
    """
    first, _, rest = name.words.partition(" ")
    if name.repeats or first in RARE_WORDS:
        return name.words, rest or name.words
    return f"{RARE_WORD} {name.words}", name.words


def folder_prompt(name: FolderName) -> str:
    """The instance prompt of the pictures in a folder of that name."""
    return f"a photo of {subject_and_class(name)[0]}"


def class_name(folder: str) -> str:
    """What is on the pictures in a folder, by its name: "../data/my_dogs-2/" gives "my dogs"."""
    return subject_and_class(name_of(folder))[1]


def default_validation_prompts(prompts: Prompts) -> list[str]:
    """Four prompts of the DreamBooth protocol for the subject; the instance prompt alone when it has no known form."""
    if prompts.subject is None:
        return [prompts.instance]
    article = "" if re.match(r"(?:an?|the|my|his|her|our) ", prompts.subject, re.IGNORECASE) else "a "
    thing = f"{article}{prompts.subject}"
    return [
        prompts.instance,
        f"{thing} in the snow",
        f"{thing} on the beach",
        f"{thing} on top of green grass with sunflowers around it",
        f"{thing} with the Eiffel Tower in the background",
    ]

"""The settings of a DreamBooth run. Names are those of diffusers' DreamBooth scripts wherever these have one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..files.errors import InputError
from ..runs.settings import (
    DASH,
    OPTIM,
    OUTPUT,
    DashArgs,
    MachineArgs,
    OptimArgs,
    OutputArgs,
    at_least,
    option,
    positive,
)
from .folders import check_folders

BASE, DATA, TRAIN, PRIOR, SHOW = (
    "base model",
    "pictures and prompts",
    "training",
    "prior preservation",
    "pictures of the result",
)
FLOW = "noise levels of flow-matching bases"
TIMESTEP_SAMPLINGS = ("uniform", "logit_normal", "sigmoid", "shift")
WEIGHTING_SCHEMES = ("none", "sigma_sqrt", "logit_normal", "mode", "cosmap")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")

# A checkpoint and the run that resumes from it must agree in the settings of these groups: a change would make it
# another run. What may change does not touch what is computed.
DECISIVE = (DATA, DASH, TRAIN, FLOW, OPTIM, PRIOR)
MAY_CHANGE = {
    "instance_data_dir",
    "latent_cache_dir",
    "max_train_steps",
    "gradient_checkpointing",
    "class_data_dir",
    "sample_batch_size",
}


@dataclass
class BaseArgs:
    """Which base is fine-tuned, as bases.loading.load_base takes it."""

    pretrained_model_name_or_path: str | None = option(
        None,
        BASE,
        "hub id or local folder of FLUX.2 (klein, dev), Z-Image, Qwen-Image, FLUX.1, Stable Diffusion 3 or 3.5, Krea "
        "2, SDXL, or Stable Diffusion 1.x or 2.x; of the last three kinds also a single .safetensors file",
        metavar="ID|PATH",
        shown_default="miniature, the embedded base of 64x64 pixels",
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


@dataclass
class DataArgs:
    """The pictures of the subject, and what they are called."""

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


@dataclass
class TrainArgs:
    """How long and on how much, and the learning rate's course."""

    max_train_steps: int | None = option(None, TRAIN, "optimizer steps", shown_default="the base's own")
    train_batch_size: int | None = option(None, TRAIN, "pictures per step and process", shown_default="the base's own")
    gradient_accumulation_steps: int = option(1, TRAIN, "batches per optimizer step")
    gradient_checkpointing: bool = option(False, TRAIN, "save memory, spend time")
    max_sequence_length: int | None = option(
        None, TRAIN, "tokens of a prompt that a flow-matching base reads", shown_default="the pipeline's own"
    )
    training_guidance_scale: float | None = option(
        None,
        TRAIN,
        "guidance that a guidance-distilled base (FLUX.1-dev, FLUX.2-dev) is told in training; --guidance_scale is "
        "that of the pictures",
        shown_default="1, for these bases",
    )
    train_text_encoder: bool = option(False, TRAIN, "adapt the text encoder too")
    snr_gamma: float | None = option(None, TRAIN, "min-SNR weighting of the loss of DDPM bases (5.0 is usual)")
    seed: int = option(0, TRAIN, "seed of everything random")


@dataclass
class FlowArgs:
    """At which times a flow-matching base is trained, and how these weigh, as bases.flow.Flow takes it."""

    timestep_sampling: str | None = option(
        None,
        FLOW,
        "how noise levels are drawn: as diffusers' scripts do (uniform), by a logit-normal (sigmoid is the standard "
        "one), or by one that is shifted as the base's sampler shifts its steps (shift)",
        choices=TIMESTEP_SAMPLINGS,
        shown_default="shift, or uniform with a --weighting_scheme that draws",
    )
    weighting_scheme: str | None = option(
        None,
        FLOW,
        "of diffusers' scripts: logit_normal and mode draw the noise levels, sigma_sqrt and cosmap weigh the loss",
        choices=WEIGHTING_SCHEMES,
    )
    logit_mean: float | None = option(None, FLOW, "mean of the logit-normal", shown_default="0")
    logit_std: float | None = option(None, FLOW, "standard deviation of the logit-normal", shown_default="1")
    mode_scale: float | None = option(None, FLOW, "scale of --weighting_scheme mode", shown_default="1.29")


@dataclass
class RateArgs:
    """The learning rate's course."""

    text_encoder_lr: float | None = option(
        None, OPTIM, "learning rate of the text encoder's adapter", shown_default="learning_rate"
    )
    scale_lr: bool = option(False, OPTIM, "multiply the rates by processes x batch size x accumulation")
    lr_scheduler: str = option("constant", OPTIM, "course of the learning rate", choices=SCHEDULES)
    lr_warmup_steps: int = option(0, OPTIM, "optimizer steps of warm-up")
    lr_num_cycles: int = option(1, OPTIM, "restarts of cosine_with_restarts")
    lr_power: float = option(1.0, OPTIM, "power of polynomial")


@dataclass
class PriorArgs:
    """Prior preservation: pictures of the class in general."""

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


@dataclass
class CheckpointArgs:
    """What a run can be resumed from."""

    checkpointing_steps: int = option(100, OUTPUT, "optimizer steps between checkpoints; 0 for none")
    checkpoints_total_limit: int | None = option(2, OUTPUT, "checkpoints to keep, the oldest go first")
    resume_from_checkpoint: str | None = option(
        None,
        OUTPUT,
        "go on from a checkpoint: latest, its name, or its path",
        metavar="latest|NAME",
        shown_default="the latest, of an interrupted run",
    )
    overwrite: bool = option(False, OUTPUT, "replace a finished run, and start anew what was interrupted")


@dataclass
class ShowArgs:
    """samples.png."""

    validation_prompt: list[str] = option(  # noqa: RUF009 (it makes a field)
        [], SHOW, "prompts of samples.png, its columns", shown_default="the subject in four settings"
    )
    sample_with: str | None = option(
        None,
        SHOW,
        "another base of the same family that draws samples.png, such as a distilled one",
        metavar="ID|PATH",
        shown_default="the base itself",
    )
    num_validation_images: int = option(1, SHOW, "pictures per prompt")
    validation_steps: int = option(0, SHOW, "also sample every so many steps; 0: only at the end")
    num_inference_steps: int | None = option(None, SHOW, "sampling steps", shown_default="the base's own")
    guidance_scale: float | None = option(None, SHOW, "classifier-free guidance", shown_default="the base's own")


# dataclass takes the fields of the last class first: --help shows the groups in the order from the end.
@dataclass
class DreamBoothConfig(
    MachineArgs,
    ShowArgs,
    CheckpointArgs,
    OutputArgs,
    PriorArgs,
    RateArgs,
    OptimArgs,
    FlowArgs,
    TrainArgs,
    DashArgs,
    DataArgs,
    BaseArgs,
):
    """All settings; None means: the base decides (see bases.family.Defaults), or off.

    Raises InputError for a value out of its range and for settings that contradict each other.
    """

    def __post_init__(self) -> None:
        self.check_dash()
        self.check_optim()
        self.check_output()
        at_least(self, 1, "max_sequence_length")
        at_least(self, 0, "training_guidance_scale", "guidance_scale")
        at_least(self, 1, "resolution", "max_train_steps", "train_batch_size", "num_crop_variants")
        at_least(self, 1, "gradient_accumulation_steps", "num_class_images", "sample_batch_size")
        at_least(self, 1, "num_validation_images", "num_inference_steps", "checkpoints_total_limit", "lr_num_cycles")
        at_least(self, 0, "lr_warmup_steps", "checkpointing_steps", "validation_steps", "seed")
        at_least(self, 0, "text_encoder_lr", "prior_loss_weight", "lr_power")
        at_least(self, -100, "logit_mean", "mode_scale")
        positive(self, "snr_gamma", "logit_std")
        if self.seed >= 2**63:
            raise InputError(f"--seed is {self.seed}; it takes a whole number below 2**63")
        if not self.instance_data_dir:
            raise InputError("--instance_data is missing; give the folder with pictures of your subject")
        self._check_idle()
        self._check_prompts()
        check_folders(self.instance_data_dir, self.output_dir, self.class_data_dir)

    def _check_idle(self) -> None:
        """Raises InputError for a setting that is given and does nothing."""
        if self.overwrite and self.resume_from_checkpoint is not None:
            raise InputError("--overwrite starts anew and --resume_from_checkpoint does not; leave one of them out")
        for name in ("class_data_dir", "class_prompt"):
            if getattr(self, name) is not None and not self.with_prior_preservation:
                raise InputError(f"--{name} does nothing without --with_prior_preservation; add that, or leave it out")
        for name, idle, remedy in (
            ("text_encoder_lr", not self.train_text_encoder, "add --train_text_encoder"),
            ("lr_warmup_steps", self.lr_scheduler == "constant", "give --lr_scheduler constant_with_warmup"),
        ):
            if idle and getattr(self, name):
                raise InputError(f"--{name} does nothing here; {remedy}, or leave it out")

    def _check_prompts(self) -> None:
        for name in ("instance_prompt", "class_prompt"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise InputError(f"--{name} is empty; give a prompt, or leave it out")
        if any(not prompt.strip() for prompt in self.validation_prompt):
            raise InputError("--validation_prompt is empty; give a prompt, or leave it out")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

"""The settings of a DreamBooth run. Names are those of diffusers' DreamBooth scripts wherever these have one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ..bases.quantization import QUANTIZATIONS
from ..files.errors import InputError
from ..measures.names import NONE
from ..runs.evaluation import PREFERENCES
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
    option,
    positive,
    read_prompts,
)
from ..runs.words import Foreign
from .folders import check_folders
from .other_trainers import FOREIGN

BASE, DATA, TRAIN, PRIOR, SHOW = (
    "base model",
    "pictures and prompts",
    "training",
    "preservation of the class",
    "pictures of the result",
)
EVAL = "measuring while training"
PRELAUNCH_STEPS = 100  # of the paper
FLOW = "noise levels of flow-matching bases"
TIMESTEP_SAMPLINGS = ("uniform", "logit_normal", "sigmoid", "shift")
WEIGHTING_SCHEMES = ("none", "sigma_sqrt", "logit_normal", "mode", "cosmap")
OFFLOADS = ("none", "model", "group")
STEADY = ("constant", "constant_with_warmup")  # schedules that do not depend on the number of steps
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")

# The settings of these groups decide what is learned, but for those below.
_DECISIVE = (DATA, DASH, TRAIN, FLOW, OPTIM, PRIOR)
_NOT_DECISIVE = {
    "instance_data_dir",
    "latent_cache_dir",
    "max_train_steps",
    "num_train_epochs",
    "repeats",
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
        "2, SDXL, or Stable Diffusion 1.x or 2.x; or a single file: .safetensors with all networks (SDXL, Stable "
        "Diffusion 1.x and 2.x), or .safetensors or .gguf with the transformer alone (all others)",
        metavar="ID|PATH",
        shown_default="miniature, a small 64x64-pixel base that ships with the package, as miniature-flow does",
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
        "what the base predicts; needed for single files of v-prediction models that do not say it",
        choices=("epsilon", "v_prediction"),
        shown_default="the base's own",
    )
    zero_terminal_snr: bool = option(
        False,
        BASE,
        "the base was trained up to pure noise; needed if its file does not say it (with --prediction_type "
        "v_prediction)",
    )
    single_file_config: str | None = option(
        None,
        BASE,
        "hub id or local folder with the configuration of a single-file base, and with the other networks if the file "
        "holds the transformer alone",
        metavar="ID|PATH",
    )
    cache_dir: str | None = option(
        None, BASE, "folder for downloads from the hub", metavar="DIR", shown_default="the hub library's own"
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
        shown_default="none; give this or --dataset_name",
    )
    dataset_name: str | None = option(
        None,
        DATA,
        "data set of the hub, or local folder of one, with pictures of the subject (needs the pip extra datasets)",
        metavar="ID|PATH",
    )
    dataset_config_name: str | None = option(None, DATA, "configuration of that data set", metavar="NAME")
    image_column: str | None = option(
        None, DATA, "the data set's column of pictures", metavar="NAME", shown_default="image"
    )
    caption_column: str | None = option(None, DATA, "the data set's column of prompts, one per picture", metavar="NAME")
    repeats: int = option(1, DATA, "how often each picture is seen in an epoch")
    instance_prompt: str | None = option(
        None, DATA, "prompt that names the subject", shown_default="from the folder's name: a photo of sks cat"
    )
    resolution: int | None = option(
        None, DATA, "side of the training pictures in pixels", shown_default="the base's own"
    )
    center_crop: bool = option(False, DATA, "crop pictures at the centre instead of at a random place")
    random_flip: bool = option(False, DATA, "also train on mirrored pictures")
    aspect_ratio_buckets: bool = option(False, DATA, "keep the shapes of the pictures instead of cropping squares")
    num_crop_variants: int = option(8, DATA, "random crops of each picture that are encoded and cached")
    use_captions: bool = option(True, DATA, "use NAME.txt, NAME.caption, metadata.jsonl or .csv as prompts")
    max_token_length: int | None = option(
        None,
        DATA,
        "number of tokens of a caption that are read, in chunks of 75 (usually 150 or 225)",
        shown_default="one chunk; longer captions are cut",
    )
    latent_cache_dir: str | None = option(
        None, DATA, "keep encoded pictures in this folder for later runs", metavar="DIR"
    )


@dataclass
class TrainArgs:
    """How long and on how much, and the learning rate's course."""

    max_train_steps: int | None = option(None, TRAIN, "number of optimizer steps", shown_default="the base's own")
    num_train_epochs: int | None = option(None, TRAIN, "number of epochs, instead of --max_train_steps")
    train_batch_size: int | None = option(None, TRAIN, "pictures per step and process", shown_default="the base's own")
    gradient_accumulation_steps: int = option(1, TRAIN, "batches per optimizer step")
    gradient_checkpointing: bool = option(
        False, TRAIN, "save memory by computing activations again in the backward pass; steps take longer"
    )
    offload: str = option(
        "none",
        MACHINE,
        "keep weights in the machine's memory while they are not in use: all networks but the one in use (model), or "
        "also all blocks of the denoiser but the one in use (group), which makes steps slower",
        choices=OFFLOADS,
    )
    max_sequence_length: int | None = option(
        None, TRAIN, "number of tokens of a prompt that a flow-matching base reads", shown_default="the pipeline's own"
    )
    clip_skip: int | None = option(
        None,
        TRAIN,
        "number of last layers of CLIP to skip, counted as in diffusers' pipelines: 1 takes the layer before the "
        "pipeline's own, which kohya and A1111 call 2 (they ignore it for SDXL)",
        shown_default="the pipeline's own layer",
    )
    training_guidance_scale: float | None = option(
        None,
        TRAIN,
        "guidance that a guidance-distilled base (FLUX.1-dev, FLUX.2-dev) gets as an input in training; "
        "--guidance_scale is for the samples",
        shown_default="1, for these bases",
    )
    train_text_encoder: bool = option(False, TRAIN, "adapt the text encoder too")
    snr_gamma: float | None = option(
        None, TRAIN, "gamma of the min-SNR weighting of the loss, for DDPM bases (usually 5.0)"
    )
    noise_offset: float | None = option(
        None,
        TRAIN,
        "also add one random number to each latent channel, times this factor, for DDPM bases (usually 0.05 to 0.1)",
    )
    seed: int = option(0, TRAIN, "seed of all random numbers")


@dataclass
class QuantizeArgs:
    """The base's linear layers in few bits, see bases.quantization."""

    quantize: str = option(
        "none",
        TRAIN,
        "keep the denoiser's linear layers in four bits (nf4) or eight (int8, fp8) (needs the pip extra quantization)",
        choices=QUANTIZATIONS,
    )
    quantize_text_encoder: str = option(
        "none", TRAIN, "the same for the text encoders of a base in a folder or on the hub", choices=QUANTIZATIONS
    )


@dataclass
class FlowArgs:
    """At which times a flow-matching base is trained, and how these weigh, as bases.flow.Flow takes it."""

    timestep_sampling: str | None = option(
        None,
        FLOW,
        "how noise levels are drawn: as in diffusers' scripts (uniform), from a logit-normal distribution "
        "(logit_normal; sigmoid is the standard one), or from a logit-normal that is shifted as the base's sampler "
        "shifts its noise levels (shift)",
        choices=TIMESTEP_SAMPLINGS,
        shown_default="shift; uniform if --weighting_scheme is logit_normal or mode",
    )
    weighting_scheme: str | None = option(
        None,
        FLOW,
        "as in diffusers' scripts: logit_normal and mode say how noise levels are drawn, sigma_sqrt and cosmap weight "
        "the loss",
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
    scale_lr: bool = option(False, OPTIM, "multiply the learning rates by processes x batch size x accumulation steps")
    lr_scheduler: str | None = option(
        None,
        OPTIM,
        "schedule of the learning rate",
        choices=SCHEDULES,
        shown_default="constant; cosine for the miniatures",
    )
    lr_warmup_steps: int = option(0, OPTIM, "optimizer steps of warm-up")
    lr_num_cycles: int = option(1, OPTIM, "number of cycles of cosine_with_restarts")
    lr_power: float = option(1.0, OPTIM, "exponent of the polynomial schedule")


@dataclass
class PriorArgs:
    """What keeps the class as it was: prior preservation trains on pictures of the class in general, and
    --preserve_class keeps what the adapter makes of the class prompt near what the base makes of it."""

    with_prior_preservation: bool = option(False, PRIOR, "also train on pictures of the class in general")
    class_data_dir: str | None = option(
        None,
        PRIOR,
        "folder of class pictures; the base draws missing ones into its subfolder 'generated'",
        metavar="DIR",
        shown_default="OUTPUT_DIR/class_images",
    )
    class_prompt: str | None = option(
        None, PRIOR, "prompt of the class", shown_default="the instance prompt without its rare word"
    )
    num_class_images: int = option(100, PRIOR, "number of class pictures")
    prior_loss_weight: float = option(1.0, PRIOR, "weight of the loss on class pictures")
    sample_batch_size: int = option(4, PRIOR, "number of class pictures that are drawn at once")
    preserve_class: bool = option(
        False,
        PRIOR,
        "keep what the adapter predicts for the class prompt near what the base predicts (differential output "
        "preservation); it needs no class pictures, and a step takes twice as long or somewhat more",
    )
    preserve_class_weight: float = option(1.0, PRIOR, "weight of the loss of --preserve_class")


@dataclass
class CheckpointArgs:
    """What a run can be resumed from."""

    checkpointing_steps: int = option(100, OUTPUT, "optimizer steps between checkpoints; 0 for none")
    checkpoints_total_limit: int | None = option(
        2, OUTPUT, "number of checkpoints to keep; the oldest are deleted first"
    )
    resume_from_checkpoint: str | None = option(
        None,
        OUTPUT,
        "checkpoint to resume from: latest, its name, or its path",
        metavar="latest|NAME",
        shown_default="the latest one of an interrupted run",
    )
    overwrite: bool = option(False, OUTPUT, "replace a finished run, or restart an interrupted one from step 0")
    save_lora_every: int = option(
        0, OUTPUT, "optimizer steps between adapters that are kept in OUTPUT_DIR/adapters, in all formats; 0 for none"
    )


@dataclass
class HubArgs:
    """Where the result goes on the hub."""

    push_to_hub: bool = option(False, OUTPUT, "push the adapter, samples.png and the model card to the hub at the end")
    hub_model_id: str | None = option(
        None, OUTPUT, "repository on the hub", metavar="ID", shown_default="the output folder's name"
    )
    hub_token: str | None = option(
        None, OUTPUT, "token for the hub", metavar="TOKEN", shown_default="that of hf auth login", secret=True
    )


@dataclass
class EvalArgs:
    """What is measured while the run goes on, see diffusion.evaluating."""

    holdout: str | None = option(
        None,
        EVAL,
        "pictures that are kept out of the training, and on which the run is measured: a share of the pictures (0.2), "
        "a number of them, or a folder of other pictures",
        metavar="SHARE|N|DIR",
    )
    evaluate_every: int | None = option(
        None,
        EVAL,
        "optimizer steps between measurements; each measured adapter is kept in OUTPUT_DIR/adapters",
        shown_default="such that measuring takes about a tenth of the training, 2 to 10 times per run",
    )
    eval_encoders: list[str] = option(  # noqa: RUF009 (it makes a field)
        [],
        EVAL,
        "hub ids or folders of the encoders: a DINOv2 that compares pictures, and a CLIP that compares pictures with "
        "prompts; none measures the loss alone",
        metavar="ID|PATH",
        shown_default="facebook/dinov2-base and openai/clip-vit-base-patch32; the miniature has its own",
    )
    prefer: str = option(
        "balanced",
        EVAL,
        "rule that recommends a checkpoint: the highest likeness to the subject (likeness), the highest likeness less "
        "drift and leak (faithful), or less half of these (balanced)",
        choices=PREFERENCES,
    )
    early_stop: bool = option(False, EVAL, "end the training early when the checkpoints no longer get better")
    early_stopping_patience: int = option(
        3,
        EVAL,
        "number of measurements in a row without a better checkpoint after which --early_stop ends the training",
    )


@dataclass
class ShowArgs:
    """samples.png."""

    validation_prompt: list[str] = option(  # noqa: RUF009 (it makes a field)
        [],
        SHOW,
        "prompts of samples.png, or a text file with one prompt per line; {} stands for the subject",
        shown_default="the subject alone and in four settings",
        sentences=True,
    )
    sample_with: str | None = option(
        None,
        SHOW,
        "another base of the same family that draws samples.png, such as a distilled one",
        metavar="ID|PATH",
        shown_default="the base itself",
    )
    num_validation_images: int = option(1, SHOW, "number of pictures per prompt")
    validation_steps: int = option(0, SHOW, "also draw samples every N optimizer steps; 0 draws them only at the end")
    validation_epochs: int | None = option(None, SHOW, "also draw samples every N epochs")
    num_inference_steps: int | None = option(None, SHOW, "number of sampling steps", shown_default="the base's own")
    guidance_scale: float | None = option(
        None,
        SHOW,
        "scale of classifier-free guidance for the samples; 0 and 1 draw without guidance",
        shown_default="the base's own",
    )


# dataclass takes the fields of the last class first: --help shows the groups in the order from the end.
@dataclass
class DreamBoothConfig(
    MachineArgs,
    EvalArgs,
    ShowArgs,
    HubArgs,
    CheckpointArgs,
    OutputArgs,
    PriorArgs,
    RateArgs,
    OptimArgs,
    FlowArgs,
    QuantizeArgs,
    TrainArgs,
    DashArgs,
    DataArgs,
    BaseArgs,
):
    """All settings; None means: the base decides (see bases.family.Defaults), or off.

    Raises InputError for a value out of its range and for settings that contradict each other.
    """

    FOREIGN: ClassVar[dict[str, Foreign]] = FOREIGN
    # What is given on the command line, and what it replaces in a file of settings.
    REPLACES: ClassVar[tuple[tuple[str, str], ...]] = (
        ("num_train_epochs", "max_train_steps"),
        ("max_train_steps", "num_train_epochs"),
        ("validation_epochs", "validation_steps"),
        ("validation_steps", "validation_epochs"),
        ("dataset_name", "instance_data_dir"),
        ("instance_data_dir", "dataset_name"),
    )

    def __post_init__(self) -> None:
        self.notes: list[str] = []  # what the user should know of the settings
        self.check_dash()
        self.check_optim()
        self.check_output()
        self._check_numbers()
        self._check_source()
        self._read_prompts()
        self._take_warmup()
        self._check_idle()
        self._check_prompts()
        self._check_lengths()
        check_folders(self.instance_data_dir, self.output_dir, self.class_data_dir)

    def _check_numbers(self) -> None:
        at_least(self, 1, "resolution", "max_train_steps", "train_batch_size", "num_crop_variants", "num_train_epochs")
        at_least(self, 1, "gradient_accumulation_steps", "num_class_images", "sample_batch_size", "validation_epochs")
        at_least(self, 1, "num_validation_images", "num_inference_steps", "checkpoints_total_limit", "lr_num_cycles")
        at_least(self, 1, "repeats", "max_token_length", "evaluate_every", "early_stopping_patience")
        at_least(self, 0, "lr_warmup_steps", "checkpointing_steps", "validation_steps", "seed", "save_lora_every")
        at_least(self, 1, "max_sequence_length")
        at_least(self, 0, "clip_skip")
        at_least(self, 0, "text_encoder_lr", "prior_loss_weight", "lr_power", "guidance_scale", "noise_offset")
        at_least(self, 0, "preserve_class_weight")
        at_least(self, 0, "training_guidance_scale")
        at_least(self, -100, "logit_mean", "mode_scale")
        positive(self, "snr_gamma", "logit_std")
        if self.seed >= 2**63:
            raise InputError(f"--seed is {self.seed}; it takes a whole number below 2**63")

    def _check_source(self) -> None:
        """Raises InputError where it is not said, or said twice, which pictures are trained on."""
        if self.dataset_name is None:
            if not self.instance_data_dir:
                raise InputError("--instance_data is missing; give the folder with pictures of your subject")
            for name in ("dataset_config_name", "image_column", "caption_column"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} does nothing without --dataset_name; leave it out")
            return
        if self.instance_data_dir:
            raise InputError("--instance_data_dir and --dataset_name both name pictures; give one of them")
        if self.instance_prompt is None:
            raise InputError(
                "--dataset_name needs --instance_prompt, since a data set does not say what its subject is called; "
                'give one, such as "a photo of sks dog"'
            )

    def _read_prompts(self) -> None:
        """--validation_prompt prompts.txt stands for the lines of that file."""
        self.validation_prompt = read_prompts(self.validation_prompt, "--validation_prompt")

    def _take_warmup(self) -> None:
        """A constant rate with a warm-up is a schedule of its own name."""
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            self.lr_scheduler = "constant_with_warmup"
            self.notes.append(
                f"--lr_scheduler constant with --lr_warmup_steps {self.lr_warmup_steps} is constant_with_warmup"
            )

    def _check_idle(self) -> None:
        """Raises InputError for a setting that is given and does nothing, and notes what another one replaces."""
        if self.overwrite and self.resume_from_checkpoint is not None:
            raise InputError("--overwrite starts anew and --resume_from_checkpoint does not; leave one of them out")
        if self.class_data_dir is not None and not self.with_prior_preservation:
            raise InputError(
                "--class_data_dir does nothing without --with_prior_preservation; add that, or leave it out"
            )
        uses_class = self.with_prior_preservation or self.preserve_class or self.holdout
        if self.class_prompt is not None and not uses_class:
            raise InputError(
                "--class_prompt does nothing without --with_prior_preservation, --preserve_class or --holdout; add one "
                "of them, or leave it out"
            )
        self._check_evaluation()
        if self.text_encoder_lr and not self.train_text_encoder:
            raise InputError("--text_encoder_lr does nothing here; add --train_text_encoder, or leave it out")
        if self.text_encoder_lr == 0 and self.train_text_encoder:
            raise InputError("--text_encoder_lr 0 trains no text encoder; give a rate, or no --train_text_encoder")
        if self.with_prior_preservation and self.prior_loss_weight == 0:
            raise InputError(
                "--prior_loss_weight 0 leaves nothing of --with_prior_preservation; give a weight, or leave both out"
            )
        if self.preserve_class and self.preserve_class_weight == 0:
            raise InputError(
                "--preserve_class_weight 0 leaves nothing of --preserve_class; give a weight, or leave both out"
            )
        if self.train_text_encoder and self.quantize_text_encoder == "nf4":
            raise InputError(
                "--train_text_encoder does not go with --quantize_text_encoder nf4: diffusers loads no LoRA into that; "
                "give int8 or fp8, or leave one of them out"
            )
        if self.offload == "group" and self.compile:
            raise InputError("--compile does not go with --offload group, which moves weights; leave one of them out")
        if self.offload == "group" and self.quantize != "none":
            raise InputError(
                f"--quantize {self.quantize} does not go with --offload group, which moves plain weights; give "
                "--offload model, or leave --quantize out"
            )
        if self.hub_model_id is not None and not self.push_to_hub:
            raise InputError("--hub_model_id does nothing without --push_to_hub; add that, or leave it out")
        if self.validation_epochs is not None and self.validation_steps:
            raise InputError("--validation_epochs and --validation_steps say the same; give one of them")
        self._note_idle()

    def _check_evaluation(self) -> None:
        """Raises InputError for settings of measurements in a run that makes none, and for what does not fit."""
        if self.holdout is not None:
            if self.early_stop and self.eval_encoders == [NONE]:
                raise InputError(
                    "--early_stop does nothing with --eval_encoders none, since the likeness says when to stop; leave "
                    "one of them out"
                )
            return
        given = {
            "evaluate_every": self.evaluate_every is not None,
            "eval_encoders": bool(self.eval_encoders),
            "early_stop": self.early_stop,
            "prefer": self.prefer != "balanced",
        }
        for name, is_given in given.items():
            if is_given:
                raise InputError(
                    f"--{name} does nothing without --holdout, which says what is measured on; add it (such as "
                    "--holdout 1), or leave it out"
                )

    def _note_idle(self) -> None:
        """Note what makes no difference: commands are copied with all their settings in them."""
        for name, usual, idle, why in (
            ("lr_num_cycles", 1, self.lr_scheduler != "cosine_with_restarts", "is of cosine_with_restarts"),
            ("lr_power", 1.0, self.lr_scheduler != "polynomial", "is of polynomial"),
            ("preserve_class_weight", 1.0, not self.preserve_class, "is of --preserve_class"),
            ("early_stopping_patience", 3, not self.early_stop, "is of --early_stop"),
            ("num_crop_variants", 8, self.center_crop and self.num_crop_variants > 1, "is of random crops"),
        ):
            if idle and getattr(self, name) != usual:
                self.notes.append(f"--{name} makes no difference, since it {why}")
        self.clip_skip = self.clip_skip or None  # none left out is the pipeline's own way
        if self.clip_skip is not None:
            self.notes.append(
                f"--clip_skip {self.clip_skip} counts as diffusers' pipelines do; kohya and A1111 call it "
                f"{self.clip_skip + 1}"
            )
        if self.learning_rate == 0:
            self.notes.append("--learning_rate 0 trains nothing, or nothing but what has a rate of its own")
        if self.max_train_steps is not None and self.num_train_epochs is not None:
            self.notes.append("--max_train_steps counts, and --num_train_epochs is left out beside it")
        elif self.repeats > 1 and self.num_train_epochs is None and self.validation_epochs is None:
            self.notes.append("--repeats makes no difference without --num_train_epochs or --validation_epochs")

    def _check_prompts(self) -> None:
        for name in ("instance_prompt", "class_prompt"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise InputError(f"--{name} is empty; give a prompt, or leave it out")
        if any(not prompt.strip() for prompt in self.validation_prompt):
            raise InputError("--validation_prompt is empty; give a prompt, or leave it out")

    def _check_lengths(self) -> None:
        """Raises InputError for parts that do not fit into --max_train_steps, where that is given."""
        if self.max_train_steps is not None:
            check_lengths(self, self.max_train_steps)

    def of_base(self) -> dict[str, Any]:
        """The arguments of bases.loading.load_base."""
        return {
            "name": self.pretrained_model_name_or_path,
            "revision": self.revision,
            "variant": self.variant,
            "vae": self.pretrained_vae_model_name_or_path,
            "single_file_config": self.single_file_config,
            "prediction_type": self.prediction_type,
            "vae_revision": self.vae_revision,
            "zero_terminal_snr": self.zero_terminal_snr,
            "max_sequence_length": self.max_sequence_length,
            "clip_skip": self.clip_skip,
            "cache_dir": self.cache_dir,
            "quantize": self.quantize,
            "quantize_text_encoder": self.quantize_text_encoder,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without secrets."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.metadata["secret"]}

    @staticmethod
    def of_record(path: Path, record: dict[str, Any]) -> dict[str, Any]:
        """The settings of a run by its run.json, but for what was about that one launch of it. Raises InputError."""
        if record["kind"] != "dreambooth":
            raise InputError(f"{path} is of a run of train_vtab.py; give a run.json of train_dreambooth.py")
        arguments: dict[str, Any] = dict(record["arguments"])
        left_out = {"resume_from_checkpoint", "overwrite"}
        # The record has every value resolved; what only followed from another one follows from it again.
        left_out |= {
            name for name in ("dash_lr", "text_encoder_lr") if arguments.get(name) == arguments["learning_rate"]
        }
        left_out |= {derived for given, derived in _DERIVED if arguments.get(given) is not None}
        if arguments.get("mixed_precision") is None:  # accelerate's own setting, which may be another here
            arguments["mixed_precision"] = record.get("mixed_precision")
        return {name: value for name, value in arguments.items() if name not in left_out}


_DERIVED = (
    ("num_train_epochs", "max_train_steps"),
    ("validation_epochs", "validation_steps"),
    ("dataset_name", "instance_data_dir"),
)


def decisive_settings() -> list[str]:
    """The names of the settings that decide what a run on a given base learns."""
    every = fields(DreamBoothConfig)
    return [f.name for f in every if f.metadata["group"] in _DECISIVE and f.name not in _NOT_DECISIVE]


def prelaunch_steps(settings: DreamBoothConfig, steps: int) -> int:
    """Steps of plain LoRA in a run of `steps`: the paper's 100, or a fifth of the steps where these are no more."""
    if settings.prelaunch_steps is not None:
        return settings.prelaunch_steps
    return PRELAUNCH_STEPS if steps > PRELAUNCH_STEPS else max(1, steps // 5)


def check_lengths(settings: DreamBoothConfig, steps: int) -> None:
    """Raises InputError where a run of `steps` leaves nothing after its pre-launch or its warm-up."""
    prelaunch = prelaunch_steps(settings, steps)
    if settings.dash_k and prelaunch >= steps:
        raise InputError(
            f"--prelaunch_steps {prelaunch} leaves nothing of --max_train_steps {steps} for the dash; give fewer of "
            "the first, more of the second, or --dash_k 0 for plain LoRA"
        )
    if settings.lr_scheduler == "cosine_with_restarts" and settings.lr_num_cycles > steps:
        raise InputError(
            f"--lr_num_cycles {settings.lr_num_cycles} is more than the {steps} steps of the run; give fewer"
        )
    if settings.lr_warmup_steps >= steps:
        raise InputError(
            f"--lr_warmup_steps {settings.lr_warmup_steps} leaves nothing of --max_train_steps {steps} at the full "
            "rate; give fewer of the first, or more of the second"
        )

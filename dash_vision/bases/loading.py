"""Loading a base by hub id, folder or single file: which family it is of, and a plain sentence where it cannot be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..files.errors import InputError
from ..files.places import from_root
from . import identity, reasons
from .another_vae import load_vae
from .families import family_of, family_of_tensors
from .family import AS_THE_PIPELINE, Conditions, Defaults, Family, Marks, PromptOptions
from .folders import WITHOUT, Wanted, dtypes_of, load_repository, read, refusal
from .miniature import DEFAULTS, EMBEDDED, MINIATURE, NOTE, SIZE, pipeline_path
from .networks import NetworkFiles, SingleFile, common_dtype
from .noise import NoiseOptions, NoiseProcess
from .reasons import explained
from .single_files import load_file, load_gguf, load_transformer, opened, unknown
from .stored import StoredMatrix, tensors_in


@dataclass
class Base:
    """A base model: the stock pipeline, on the CPU, and its family.

    name: as the user gave it; one of EMBEDDED for the miniatures. defaults: of settings. specification: the arguments
    of load_base that load it again from anywhere on this machine. note: what a user of it should know. prompt_options:
    how prompts are told to the denoiser, in training and when pictures are drawn. inputs: what the sampler is told, by
    prompts that are encoded already. waiting: what loads each network that has no weights yet, by its name in the
    pipeline. files: where the weights of networks lie, as far as they can be read again one by one. sampler: class of
    the base's own one, which the pipeline has unless it cannot draw as the base was trained.
    """

    name: str
    family: Family
    pipeline: Any
    defaults: Defaults
    specification: dict[str, Any] = field(default_factory=dict)
    note: str | None = None
    prompt_options: PromptOptions = AS_THE_PIPELINE
    inputs: dict[str, Conditions] = field(default_factory=dict, repr=False)
    waiting: dict[str, Callable[[], nn.Module]] = field(default_factory=dict, repr=False)
    files: dict[str, NetworkFiles | SingleFile] = field(default_factory=dict, repr=False)
    sampler: str = ""
    _digests: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def embedded(self) -> bool:
        """Whether it is a miniature, which this package carries."""
        return self.name in EMBEDDED

    @property
    def denoiser(self) -> nn.Module:
        """The network that is trained."""
        return cast(nn.Module, getattr(self.pipeline, self.family.denoiser))

    @property
    def resolution(self) -> int:
        """The side in pixels that the denoiser was trained at."""
        return SIZE if self.embedded else self.family.resolution(self.pipeline)

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return self.family.factor(self.pipeline)

    @property
    def grid(self) -> int:
        """Pixels that one cell of the denoiser's coarsest level covers: sizes of buckets are multiples of it."""
        return self.family.grid(self.pipeline)

    def noise(self, options: NoiseOptions | None = None) -> NoiseProcess:
        """The process that the base was trained on."""
        return self.family.noise(self.pipeline, options or NoiseOptions())

    def text_encoders(self) -> list[nn.Module]:
        """The text encoders in the family's order, without those that the base lacks."""
        encoders = [getattr(self.pipeline, name) for name in self.family.text_encoders]
        return [encoder for encoder in encoders if encoder is not None]

    def trained_encoders(self) -> list[nn.Module]:
        """Those of the text encoders that can be trained, in the family's order."""
        return [getattr(self.pipeline, name) for name in self.family.trained_encoders]

    def drop_text_encoders(self) -> None:
        """Let their memory go. From then on only the prompts in `inputs` can be drawn."""
        self.pipeline.register_modules(**dict.fromkeys(self.family.text_encoders))

    def load(self, *names: str) -> None:
        """Read the weights of these networks, where they wait for that; without names, of all. Raises InputError."""
        for name in names or [*self.waiting]:
            if name in self.waiting:
                network = self.read(name)
                self._digests[name] = self.files[name].digest(network)

    def read(self, name: str) -> nn.Module:
        """`load` for one network that waits, without the time of its digest."""
        network = self.waiting.pop(name)().requires_grad_(False).eval()
        self.pipeline.register_modules(**{name: network})
        return network

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype in which the base's files have a network; float32 where they have several."""
        if name in self.files:
            return self.files[name].stored_dtype()
        path = Path(self.specification["name"])
        replaced = name == "vae" and self.specification["vae"] is not None
        return common_dtype(tensors_in([path])) if path.is_file() and not replaced else torch.float32

    def components(self) -> dict[str, nn.Module]:
        """Every network of the base by its name in the pipeline."""
        names = ("vae", self.family.denoiser, *self.family.text_encoders)
        found = {name: getattr(self.pipeline, name) for name in names}
        return {name: network for name, network in found.items() if network is not None}

    def identity(self) -> dict[str, str]:
        """Digests of all that a run on this base depends on, by name: networks, tokenizers, the noise process.

        They are of the networks as their files have them: a network's is taken when its weights are read, and of those
        that `load_base` read at once with the first call, which has to come before one is changed or cast. What waits
        for its weights is loaded.
        """
        self.load()
        return {name: self.digest(name) for name in self._parts()}

    def precise(self, name: str, module: str, size: tuple[int, int]) -> StoredMatrix | None:
        """What reads the weight of a layer of the network `name` as the base's files have it, unquantized; None where
        there is no such file. size: (out, in) of its matrix."""
        found = self.files[name].precise(module, size) if name in self.files else None
        return None if found is None else found.matrix()

    def digest(self, name: str) -> str:
        """The digest of one part, see `identity`."""
        if name not in self._digests:
            self._digests[name] = self._parts()[name]()
        return self._digests[name]

    def _parts(self) -> dict[str, Callable[[], str]]:
        """What gives the digest of each part."""
        networks = self.components()
        parts: dict[str, Callable[[], str]] = {
            name: partial(self.files[name].digest if name in self.files else identity.of_network, network)
            for name, network in networks.items()
        }
        for name in self._digests.keys() - parts.keys():  # of networks that were dropped since
            parts[name] = partial(self._digests.__getitem__, name)
        for name, part in self.pipeline.components.items():
            if name.startswith("tokenizer") and part is not None:
                parts[name] = partial(identity.of_tokenizer, part)
        parts["noise process"] = lambda: identity.of_values(self.noise())
        return parts


def load_base(
    name: str | None,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | None = None,
    single_file_config: str | None = None,
    prediction_type: str | None = None,
    vae_revision: str | None = None,
    zero_terminal_snr: bool = False,
    max_sequence_length: int | None = None,
    clip_skip: int | None = None,
    cache_dir: str | None = None,
    *,
    quantize: str = "none",
    quantize_text_encoder: str = "none",
    waits: bool = False,
    without_weights: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Base:
    """Load a base model by hub id, folder, or single .safetensors file; "miniature", "miniature-flow" and None
    (the first of them) are the embedded ones.

    revision, variant: of a hub id's files; variant: of a folder's too. vae, vae_revision: another VAE and its revision.
    single_file_config: hub id or folder with the configuration of a single file, and with all other networks where that
    holds a transformer alone. prediction_type: what the base predicts, where its files do not say it.
    zero_terminal_snr: it was trained up to pure noise, and its files do not say it. max_sequence_length: tokens of a
    prompt that are read, where there is a choice. clip_skip: last layers of CLIP that are left out. cache_dir: folder
    of what is fetched from the hub. waits: the networks of a folder or hub id have no weights until `Base.load` reads
    them, so that they need not be in memory all at once. without_weights: they never have any, and of a hub id only the
    configuration is fetched. dtype: of the denoiser, and of what else of it a quantized one computes; where it is a
    half precision, text encoders stay in bfloat16 that are so on disk. Other networks are in float32, as all of an
    unquantized single file are. quantize, quantize_text_encoder: words of quantization.QUANTIZATIONS, for the linear
    layers of the denoiser and of the text encoders. Weights are read from safetensors only. Raises InputError in plain
    words when there is no such base, it cannot be fetched, or is of a kind that this package does not train.
    """
    name = name or MINIATURE
    specification: dict[str, Any] = {
        "name": name if name in EMBEDDED else _absolute(name),
        "revision": revision,
        "variant": variant,
        "vae": _absolute(vae),
        "single_file_config": _absolute(single_file_config),
        "prediction_type": prediction_type,
        "vae_revision": vae_revision,
        "zero_terminal_snr": zero_terminal_snr,
    }
    kept = cache_dir and str(from_root(Path(cache_dir).expanduser()))
    told = {"max_sequence_length": max_sequence_length, "clip_skip": clip_skip, "cache_dir": kept}
    specification |= {key: value for key, value in told.items() if value is not None}  # few bases have them
    words = {"quantize": quantize, "quantize_text_encoder": quantize_text_encoder}
    specification |= {key: word for key, word in words.items() if word != "none"}
    single_file_config, vae = _expanded(single_file_config), _expanded(vae)
    hub = {"cache_dir": kept} if kept else {}
    wanted = Wanted(revision, variant, hub, without_weights, words=words)
    path = pipeline_path(name) if name in EMBEDDED else Path(name).expanduser()
    marks = Marks()
    _check_idle(name, path, revision, variant, single_file_config, vae, vae_revision)
    files: dict[str, NetworkFiles] = {}
    singles: dict[str, SingleFile] = {}
    if path.is_file() and path.suffix == ".gguf":
        pipeline, family, files, singles = load_gguf(path, single_file_config, wanted, dtype)
    elif path.is_file():
        with opened(path) as file:
            whole = family_of_tensors(file.keys())
            marks = whole.marks(file, single_file_config is not None) if whole else marks
        if whole is not None:
            family = whole
            pipeline, singles = load_file(path, family, single_file_config, wanted, dtype)
        else:
            pipeline, family, files = load_transformer(path, single_file_config, wanted)
    else:
        pipeline, family, files = load_repository(str(path) if path.is_dir() else name, wanted)
    if vae is not None:
        pipeline.register_modules(vae=load_vae(pipeline.vae, vae, vae_revision, hub))
        files.pop("vae", None)
    _check_classes(name, family, pipeline)
    sampler = type(pipeline.scheduler).__name__
    _set_process(family, pipeline, marks, prediction_type, zero_terminal_snr)
    family.serve_zero_terminal_snr(name, pipeline)
    family.check(name, pipeline)
    options = PromptOptions(length=max_sequence_length, clip_skip=clip_skip)
    family.check_prompts(pipeline, options)
    base = Base(name, family, pipeline, family.suited(pipeline), specification, family.note(pipeline), options)
    base.files, base.sampler = {**files, **singles}, sampler
    base.waiting = {part: partial(read, found, dtypes_of(part, family, dtype)) for part, found in files.items()}
    drawn_by = type(pipeline.scheduler).__name__
    if drawn_by != sampler:
        base.note = base.note or f"its {sampler} cannot draw up to pure noise, so samples are drawn by {drawn_by}"
    if base.embedded:
        base.defaults, base.note = DEFAULTS[name], NOTE
    for network in base.components().values():
        network.requires_grad_(False).eval()
    if without_weights:
        for network in base.components().values():  # of a single file, or another VAE
            network.to("meta")
        return base
    for part in () if waits else [*files]:
        base.read(part)
    for part in base.components().keys() - files.keys() if waits else ():
        base.digest(part)  # it was read at once, and may be cast before anybody asks
    pipeline.set_progress_bar_config(disable=True)
    return base


def load_again(
    specification: Mapping[str, Any],
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: str | None = None,
) -> Base:
    """The base that a run recorded. name: where it is now, instead of where it was. dtype: see `load_base`. quantize:
    of the denoiser instead of the run's; with "none" nothing is quantized. Raises InputError as `load_base`, and for a
    specification of another version."""
    arguments = dict(specification)
    if quantize is not None:
        arguments["quantize"] = quantize
    if quantize == "none":
        arguments.pop("quantize_text_encoder", None)
    if name is not None:
        arguments |= {"name": name, "revision": None}  # a revision is of one hub id
        if not Path(name).expanduser().is_file():
            arguments["single_file_config"] = None
    unknown = arguments.keys() - inspect.signature(load_base).parameters
    if unknown or "name" not in arguments:
        raise InputError("the run records its base in the way of another version of dash-vision; make the run again")
    try:
        return load_base(**arguments, dtype=dtype)
    except InputError as error:
        raise InputError(str(error).removesuffix(WITHOUT)) from None  # which is of a training


def _check_classes(name: str, family: Family, pipeline: Any) -> None:
    """Raises InputError where the denoiser or the VAE is not what the pipeline's class asks for: diffusers only warns,
    and a VAE of another class (a small one for previews, say) fails when it is used."""
    asked = pipeline._get_signature_types()
    for part in (family.denoiser, "vae"):
        network = getattr(pipeline, part)
        kinds = tuple(kind for kind in asked.get(part, ()) if isinstance(kind, type))
        if kinds and not isinstance(network, kinds):
            raise InputError(
                f"the base {name} has a {type(network).__name__} as its {part}; {family.name} takes a "
                f"{' or '.join(kind.__name__ for kind in kinds)}: give a base with its own {part}"
            )


def _set_process(family: Family, pipeline: Any, marks: Marks, prediction: str | None, zero_snr: bool) -> None:
    """Tell the pipeline what the user says of its noise process, or else what its file does."""
    said = prediction or marks.prediction_type
    if said is not None:
        family.set_prediction(pipeline, said)
    if zero_snr or (marks.zero_terminal_snr and said == "v_prediction"):
        family.set_zero_terminal_snr(pipeline)


def find_family(name: str) -> Family:
    """The family of the base of that hub id, folder or single file, which is not loaded. Raises as `load_base`."""
    import diffusers

    path = Path(name).expanduser()
    if path.is_file():
        with opened(path) as file:
            keys = list(file.keys())
        return family_of_tensors(keys) or unknown(path, keys)
    with explained(lambda error: refusal(name, reasons.of_name(name, error, None, None))):
        index = diffusers.DiffusionPipeline.load_config(str(path) if path.is_dir() else name)
    return family_of(index, name)


def _check_idle(
    name: str,
    path: Path,
    revision: str | None,
    variant: str | None,
    config: str | None,
    vae: str | None,
    vae_revision: str | None,
) -> None:
    """Raises InputError for a choice among files where there is none."""
    for flag, value, idle, why in (
        ("revision", revision, path.exists(), f"{name} is on this machine, and only the hub has revisions"),
        ("variant", variant, path.is_file(), f"{name} is a single file"),
        ("single_file_config", config, not path.is_file(), f"{name} is no single file and has its own configuration"),
        ("vae_revision", vae_revision, vae is None, "no other VAE is given (--pretrained_vae_model_name_or_path)"),
    ):
        if value is not None and idle:
            raise InputError(f"--{flag} {value} does nothing here: {why}; leave it out")


def _expanded(name: str | None) -> str | None:
    """ "--flag=~/folder" reaches us unexpanded."""
    return str(Path(name).expanduser()) if name and name.startswith("~") else name


def _absolute(name: str | None) -> str | None:
    """A path from the root; a hub id as it is."""
    if name is None or not Path(name).expanduser().exists():
        return name
    return str(from_root(name))

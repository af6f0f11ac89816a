"""Loading a base by hub id, folder or single file: which family it is of, and a plain sentence where it cannot be."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..files.errors import InputError
from ..files.places import from_root
from . import identity, reasons
from .another_vae import load_vae
from .family import AS_THE_PIPELINE, Conditions, Defaults, Family, Marks, PromptOptions
from .flux import Flux
from .flux2 import Flux2Dev, Flux2Klein
from .krea2 import Krea2
from .miniature import DEFAULTS, MINIATURE, NOTE, pipeline_path
from .networks import (
    NetworkFiles,
    SingleFile,
    SingleFileNetwork,
    common_dtype,
    quiet,
    read_single_file,
    single_file_class,
)
from .noise import NoiseOptions, NoiseProcess
from .quantization import INSTALL, check_installed
from .qwen_image import QwenImage
from .reasons import explained
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL
from .stable_diffusion import StableDiffusion
from .stored import StoredMatrix, tensors_in
from .z_image import ZImage

_WITHOUT = "; without --pretrained_model_name_or_path the run trains on the embedded miniature"
_WEIGHTS = ["*.safetensors", "*.bin", "*.ckpt", "*.pt", "*.pth", "*.msgpack", "*.h5", "*.onnx*", "*.gguf", "*.png"]
_LIBRARIES = ("diffusers", "transformers")
_DIFFUSERS = "0.40"  # has the pipelines of all families; pyproject.toml asks for it too
FAMILIES: tuple[Family, ...] = (
    StableDiffusion(),
    StableDiffusionXL(),
    Flux2Klein(),
    Flux2Dev(),
    ZImage(),
    QwenImage(),
    Flux(),
    StableDiffusion3(),
    Krea2(),
)

# The pipeline, its family, and the files of the networks that have no weights yet.
_Loaded = tuple[Any, Family, dict[str, NetworkFiles]]


@dataclass(frozen=True)
class _Wanted:
    """How the files of a base are read. revision, variant: of a hub id's files. hub: further arguments of what fetches
    them. bare: networks stay without weights, which are not fetched. denoiser: a file with the weights of that network,
    which need not be among the base's own. words: how networks are quantized, by the flag that says it."""

    revision: str | None = None
    variant: str | None = None
    hub: dict[str, Any] = field(default_factory=dict)
    bare: bool = False
    denoiser: Path | None = None
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Base:
    """A base model: the stock pipeline, on the CPU, and its family.

    name: as the user gave it, or MINIATURE. defaults: of settings. specification: the arguments of load_base that load
    it again from anywhere on this machine. note: what a user of it should know. prompt_options: how prompts are told to
    the denoiser, in training and when pictures are drawn. inputs: what the sampler is told, by prompts that are encoded
    already. waiting: what loads each network that has no weights yet, by its name in the pipeline. files: where the
    weights of networks lie, as far as they can be read again one by one. sampler: class of the base's own one, which
    the pipeline has unless it cannot draw as the base was trained.
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
        """Whether it is the miniature, which this package carries."""
        return self.name == MINIATURE

    @property
    def denoiser(self) -> nn.Module:
        """The network that is trained."""
        return cast(nn.Module, getattr(self.pipeline, self.family.denoiser))

    @property
    def resolution(self) -> int:
        """The side in pixels that the denoiser was trained at."""
        return self.family.resolution(self.pipeline)

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
    """Load a base model by hub id, folder, or single .safetensors file; "miniature" or None is the embedded one.

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
        "name": _absolute(name) if name != MINIATURE else name,
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
    wanted = _Wanted(revision, variant, hub, without_weights, words=words)
    path = pipeline_path() if name == MINIATURE else Path(name).expanduser()
    marks = Marks()
    _check_idle(name, path, revision, variant, single_file_config, vae, vae_revision)
    files: dict[str, NetworkFiles] = {}
    singles: dict[str, SingleFile] = {}
    if path.is_file() and path.suffix == ".gguf":
        pipeline, family, files, singles = _load_gguf(path, single_file_config, wanted, dtype)
    elif path.is_file():
        with _opened(path) as file:
            whole = _family_of_tensors(file.keys())
            marks = whole.marks(file, single_file_config is not None) if whole else marks
        if whole is not None:
            family = whole
            pipeline, singles = _load_file(path, family, single_file_config, wanted, dtype)
        else:
            pipeline, family, files = _load_transformer(path, single_file_config, wanted)
    else:
        pipeline, family, files = _load_repository(str(path) if path.is_dir() else name, wanted)
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
    base.waiting = {part: partial(_read, found, _dtypes(part, family, dtype)) for part, found in files.items()}
    drawn_by = type(pipeline.scheduler).__name__
    if drawn_by != sampler:
        base.note = base.note or f"its {sampler} cannot draw up to pure noise, so samples are drawn by {drawn_by}"
    if base.embedded:
        base.defaults, base.note = DEFAULTS, NOTE
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
        raise InputError(str(error).removesuffix(_WITHOUT)) from None  # which is of a training


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
        with _opened(path) as file:
            keys = list(file.keys())
        return _family_of_tensors(keys) or _unknown(path, keys)
    with explained(lambda error: _refusal(name, reasons.of_name(name, error, None, None))):
        index = diffusers.DiffusionPipeline.load_config(str(path) if path.is_dir() else name)
    return _family_of(index, name)


def _load_repository(name: str, wanted: _Wanted) -> _Loaded:
    import diffusers
    import huggingface_hub

    if Path(name).is_dir():
        return _load_folder(Path(name), name, wanted)
    revision, variant = wanted.revision, wanted.variant
    where = wanted.hub | ({"revision": revision} if revision else {})
    with explained(lambda error: _refusal(name, reasons.of_name(name, error, revision, variant))):
        index = diffusers.DiffusionPipeline.load_config(name, **where)
        family = _family_of(index, name)
        options = family.loading_options() | ({family.denoiser: None} if wanted.denoiser else {})
        if wanted.bare:
            folder = huggingface_hub.snapshot_download(
                name, revision=revision, ignore_patterns=_WEIGHTS, cache_dir=wanted.hub.get("cache_dir")
            )
        else:
            folder = diffusers.DiffusionPipeline.download(
                name, variant=variant, use_safetensors=True, **options, **where
            )
        if wanted.denoiser:  # what is fetched of it is its configuration
            kind = getattr(diffusers, index[family.denoiser][1])
            kind.load_config(name, subfolder=family.denoiser, **where)
    return _load_folder(Path(folder), name, wanted)


def _load_folder(folder: Path, name: str, wanted: _Wanted) -> _Loaded:
    """The pipeline in a folder, its networks without weights. name: as the user calls it."""
    import diffusers

    variant = wanted.variant
    with explained(lambda error: _refusal(name, reasons.of_folder(folder, error, (), variant))):
        index = diffusers.DiffusionPipeline.load_config(str(folder))
    family = _family_of(index, name)
    # diffusers wants to be told of parts that a base was saved without.
    absent = {part: None for part, kind in index.items() if kind == [None, None]}
    lacking = [part for part in ("vae", family.denoiser) if part in absent]
    if lacking:
        raise InputError(_refusal(name, f"its model_index.json names no {' and no '.join(lacking)}; give a whole base"))
    options: dict[str, Any] = absent | family.loading_options()
    sources: dict[str, NetworkFiles] = {}
    parts = ("vae", family.denoiser, *(part for part in family.text_encoders if index.get(part, [None])[-1]))
    used = {part: kind for part, kind in index.items() if part not in options}
    with explained(lambda error: _refusal(name, reasons.of_folder(folder, error, parts, variant, used))), quiet():
        for part in parts:
            library, kind = index[part]
            if library in _LIBRARIES:  # of others diffusers says what they are; nothing that a file names is imported
                file = wanted.denoiser if part == family.denoiser else None
                lies_here = file is None and not wanted.bare
                fault = reasons.of_part(folder / part, lies_here, variant)  # now, not when the weights are wanted
                if fault:
                    raise InputError(_refusal(name, fault))
                flag = _quantized_by(part, family)
                word = wanted.words.get(flag, "none")
                files = NetworkFiles(name, folder / part, library, kind, variant, word)
                if file is not None:
                    files = SingleFileNetwork(str(file), folder / part, library, kind, None, word, file)
                if not wanted.bare:
                    _check_quantized(files, flag)
                options[part] = _empty(files)
                sources[part] = files
        pipeline = _pipeline_class(family).from_pretrained(
            str(folder), torch_dtype=torch.float32, use_safetensors=True, **options
        )
    unused = reasons.without_variant(folder, parts, variant) if variant and not wanted.bare else None
    if unused:
        raise InputError(_refusal(name, unused))
    return pipeline, family, sources


def _empty(files: NetworkFiles) -> nn.Module:
    """A network without weights. Raises InputError."""
    with explained(lambda error: _refusal(files.base, files.why(error))):
        return files.empty()


def _quantized_by(part: str, family: Family) -> str:
    """The flag that says how a network is quantized; "" for one that is not."""
    if part == family.denoiser:
        return "quantize"
    return "quantize_text_encoder" if part in family.text_encoders else ""


def _check_quantized(files: NetworkFiles, flag: str) -> None:
    """Raises InputError where a network is quantized on disk and shall be so once more, or its library is missing."""
    if files.quantize == "none":
        return
    if files.quantized_as is not None:
        raise InputError(
            f"--{flag} {files.quantize}: the {files.folder.name} of the base {files.base} is quantized already "
            f"({files.quantized_as}); leave it out, or give the base that it was made of"
        )
    check_installed(files.quantize, f"--{flag}")


def _dtypes(part: str, family: Family, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes in which a network may be kept, the first in any case and the others where its files have them. VAEs
    overflow in half precision, and text encoders in float16."""
    if part == family.denoiser:
        return (dtype,)
    if part in family.text_encoders and dtype != torch.float32:
        return torch.float32, torch.bfloat16
    return (torch.float32,)


def _read(files: NetworkFiles, dtypes: tuple[torch.dtype, ...]) -> nn.Module:
    """A network with its weights, in the dtype of its files if that is one of `dtypes`, else in the first of these.
    Raises InputError, for lacking tensors too: the libraries would leave random numbers there, with a warning."""
    with explained(lambda error: _refusal(files.base, files.why(error))), quiet():
        stored = files.stored_dtype() if len(dtypes) > 1 else dtypes[0]
        network, missing = files.read(stored if stored in dtypes else dtypes[0])
    if missing:
        raise InputError(_refusal(files.base, reasons.missing_tensors(files.folder.name, missing)))
    return network


def _load_file(
    path: Path, family: Family, config: str | None, wanted: _Wanted, dtype: torch.dtype
) -> tuple[Any, dict[str, SingleFile]]:
    """The pipeline of a file that holds all its networks, and where its denoiser lies."""
    word, options = wanted.words["quantize"], family.loading_options()
    check_installed(word, "--quantize")
    if wanted.words["quantize_text_encoder"] != "none":
        raise InputError("--quantize_text_encoder takes bases in folders, and this one is a single file; leave it out")
    kind = single_file_class(_pipeline_class(family), family.denoiser)
    with explained(lambda error: _refusal(str(path), reasons.of_file(path, error, config))), quiet():
        if word != "none":
            place = {"config": config, "subfolder": family.denoiser} if config else {}
            options[family.denoiser] = read_single_file(kind, path, word, dtype, **place)
        pipeline = _pipeline_class(family).from_single_file(
            str(path),
            torch_dtype=torch.float32,
            **options,
            **({"config": config} if config else {}),
            **wanted.hub,
        )
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    if any(tensor.is_meta for network in networks for tensor in network.parameters()):
        raise InputError(_refusal(str(path), reasons.incomplete_file()))
    denoiser = getattr(pipeline, family.denoiser)
    return pipeline, {family.denoiser: SingleFile(path, kind.__name__, dict(cast(Any, denoiser).config), word)}


def _load_transformer(path: Path, config: str | None, wanted: _Wanted) -> _Loaded:
    """The pipeline of `config`, a hub id or folder, with the transformer that a file holds."""
    with _opened(path) as file:
        keys = list(file.keys())
    if config is None or any("lora" in key for key in keys):
        _unknown(path, keys)
    if Path(config).is_dir() and not (Path(config) / reasons.INDEX).is_file():
        raise InputError(f"--single_file_config {config} has no {reasons.INDEX}; give the folder of a whole base")
    loaded = _load_repository(config, replace(wanted, denoiser=path))
    if loaded[1].single_files:
        raise InputError(
            f"{path} holds no whole base of {loaded[1].name}, which --single_file_config {config} is of; give a file "
            "with all its networks"
        )
    return loaded


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A single file, to look at. Raises InputError where it is none that is safe, or is damaged."""
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path} is not a .safetensors file; other formats can run code when they are opened: convert it first"
        )
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no complete .safetensors file ({error}); fetch it again") from None


def _unknown(path: Path, keys: list[str]) -> NoReturn:
    raise InputError(
        f"{path} holds no whole base of Stable Diffusion 1, 2 or XL (its tensors are called {', '.join(keys[:2])}, "
        "...); for a file of a transformer alone add --single_file_config with the hub id or folder of its base, and "
        "for a LoRA give the base model instead"
    )


def _load_gguf(
    path: Path, config: str | None, wanted: _Wanted, dtype: torch.dtype
) -> tuple[Any, Family, dict[str, NetworkFiles], dict[str, SingleFile]]:
    """The pipeline at `config`, its denoiser from a GGUF file."""
    if config is None:
        raise InputError(
            f"{path} holds a denoiser alone; give --single_file_config with the folder or hub id of a base of its "
            "kind, which has the other parts"
        )
    word = wanted.words["quantize"]
    if word != "none":
        raise InputError(f"--quantize {word}: {path} is quantized already (gguf); leave it out")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{path} needs gguf, which is not installed: {INSTALL}")
    pipeline, family, files = _load_repository(config, wanted)
    found = files.pop(family.denoiser)
    with explained(lambda error: _not_of(path, family, config, error)), quiet():
        kind = type(getattr(pipeline, family.denoiser))
        place = {"config": str(found.folder.parent), "subfolder": family.denoiser}
        denoiser = read_single_file(kind, path, "gguf", dtype, **place)
        if any(tensor.is_meta for tensor in denoiser.parameters()):
            raise ValueError("it lacks some of its tensors")
    pipeline.register_modules(**{family.denoiser: denoiser})
    single = SingleFile(path, kind.__name__, dict(cast(Any, denoiser).config), "gguf")
    return pipeline, family, files, {family.denoiser: single}


def _not_of(path: Path, family: Family, config: str, error: Exception) -> str:
    """What to say of a GGUF file that does not fit."""
    general = reasons.needed(error) or reasons.disk(error)
    return general or (
        f"{path} is no GGUF file of the {family.denoiser} of {config}, a {family.name} ({reasons.quoted(error)}); give "
        "--single_file_config with a base of the file's own family and size"
    )


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


def _refusal(name: str, reason: str) -> str:
    return f"cannot load the base {name}: {reason}{_WITHOUT}"


def _expanded(name: str | None) -> str | None:
    """ "--flag=~/folder" reaches us unexpanded."""
    return str(Path(name).expanduser()) if name and name.startswith("~") else name


def _absolute(name: str | None) -> str | None:
    """A path from the root; a hub id as it is."""
    if name is None or not Path(name).expanduser().exists():
        return name
    return str(from_root(name))


def _family_of_tensors(keys: Collection[str]) -> Family | None:
    """The family of a single file that holds all networks of a base; None for another file."""
    return next((family for family in FAMILIES if family.owns(keys)), None)


def _family_of(index: Any, name: str) -> Family:
    pipeline_class = index.get("_class_name")
    for family in FAMILIES:
        if family.pipeline_class == pipeline_class:
            _pipeline_class(family)  # before anything is fetched
            return family
    known = ", ".join(f"{f.name} ({f.pipeline_class})" for f in FAMILIES)
    raise InputError(f"the base {name} is a {pipeline_class}; dash-vision trains {known}")


def _pipeline_class(family: Family) -> Any:
    """The family's class of diffusers. Raises InputError where the installed version is older than that."""
    import diffusers

    found = getattr(diffusers, family.pipeline_class, None)
    if found is None:
        raise InputError(
            f"{family.name} needs diffusers >= {_DIFFUSERS}, and {diffusers.__version__} is installed, which has no "
            f'{family.pipeline_class}: pip install --upgrade "diffusers>={_DIFFUSERS}"'
        )
    return found

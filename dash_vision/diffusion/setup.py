"""From settings to a job: everything is read and checked, the base loaded, pictures and prompts encoded once."""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from tqdm.auto import tqdm

from ..bases.devices import cast_network
from ..bases.family import Target, moved
from ..bases.loading import Base, find_family, load_base
from ..bases.noise import NoiseOptions, NoiseProcess
from ..bases.offloading import Offload, offload_of
from ..bases.sampling import encode_inputs
from ..core.adapter import Adapter, inject
from ..core.schedule import DashSchedule
from ..core.weights import weight_matrix
from ..files.atomic import FolderInUse, FolderLock
from ..files.errors import InputError
from ..files.places import from_root
from ..measures.asking import ask
from ..pictures.captions import shown
from ..pictures.folder import InstanceImage, decode_files
from ..pictures.listing import Listing, check_folder, files_digest, list_folder
from ..runs.journal import Journal
from ..runs.loop import Training
from ..runs.optimizers import make_optimizer, make_rate
from ..runs.record import RUN
from ..runs.runtime import Runtime
from ..runs.seeds import seed_everything
from .checkpoints import put_aside, starting_point
from .config import DreamBoothConfig
from .dataset import dataset_pictures
from .heldout import Split, seen_again, split
from .job import DreamBoothJob, HeldOut, Material
from .latents import Example, Framing, encode_examples, prompts_of
from .long_prompts import encode_chunks, left_out, takes_chunks, tokenize_chunks
from .plan import Plan, make_plan
from .prior import check_class_pictures, class_images
from .prompts import Prompts, derive_prompts, folder_prompt, note_unsaid

Say = Callable[[str], None]
_TOLD = 3  # prompts whose end is quoted


def prepare(settings: DreamBoothConfig, runtime: Runtime, say: Say) -> DreamBoothJob:
    """The job of a run, resumed from its checkpoint where it has one. say: prints one line for the user.

    Everything that can be is checked before the base is loaded. Raises InputError for input that cannot be used.
    """
    started, timings = time.time(), dict[str, float]()
    say = say if runtime.main else _silent
    _check_split(settings, runtime)
    _check_offload(settings, runtime)
    if settings.holdout is not None and runtime.sharded:
        raise InputError(
            "--holdout does not go with FSDP: measuring takes a whole base on one process; leave it out, and measure "
            "the adapters of --save_lora_every by `python -m eval checkpoints` afterwards"
        )
    output = Path(settings.output_dir).expanduser()
    if settings.dataset_name:
        settings = _from_dataset(settings, output, runtime)
    # Missing pictures are the commonest mistake: found before minutes are spent on loading a model.
    parts = split(settings, _list_pictures(settings))
    prompts = derive_prompts(settings)
    make_writable(output)
    lock = _claim(output) if runtime.main else None
    try:
        return _prepare(settings, parts, prompts, runtime, say, lock, started, timings)
    except BaseException:
        if lock is not None:  # the error may be kept, a notebook does so, and the lock with it
            lock.release()
        raise


def _prepare(
    settings: DreamBoothConfig,
    parts: Split,
    prompts: Prompts,
    runtime: Runtime,
    say: Say,
    lock: FolderLock | None,
    started: float,
    timings: dict[str, float],
) -> DreamBoothJob:
    """The job in an output folder that is this run's."""
    output, listing = Path(settings.output_dir).expanduser(), parts.listing
    journal = Journal(output if runtime.main else None)
    checkpoint = starting_point(output, settings.resume_from_checkpoint, settings.overwrite)
    journal.begin(sys.argv[1:])
    journal.write(phase="load")
    with _timed(timings, "load"):
        base = _load(settings, runtime, say)
    plan = make_plan(settings, prompts, base, sum(file.repeats for file in listing.files), runtime.world)
    for note in plan.notes():
        say(f"note: {note}")
    if plan.taken():
        say(f"      defaults of this base: {', '.join(plan.taken())}")
    process = noise_of(settings, base)
    pictures = _decode(plan, listing, say)
    heldout = _decode(plan, parts.heldout, say) if parts.heldout else ()
    _announce(plan, pictures, say)
    if parts.heldout:
        _announce_heldout(plan, pictures, heldout, say)
    class_pictures: tuple[InstanceImage, ...] = ()
    if settings.with_prior_preservation:  # the base draws pictures, which takes all of its networks at once
        _ready_networks(plan, base, runtime, timings)
        journal.write(phase="class pictures")
        with _timed(timings, "class images"):
            class_pictures = class_images(base, plan, runtime, say)
    journal.write(phase="encode")
    material = _make_material(plan, base, pictures, class_pictures, heldout, runtime, say, timings)
    if parts.heldout:
        digest = files_digest([file.path for file in parts.heldout.files])
        material = replace(material, heldout_folder=str(from_root(parts.heldout.folder)), heldout_digest=digest)
    if not settings.with_prior_preservation:  # until now the memory was for the text encoders
        _ready_networks(plan, base, runtime, timings)
    adapters = _inject(plan, base, runtime)
    if plan.settings.dash_k:
        _find_precise(base, adapters, runtime, say)
    networks = {name: _spread(base, plan, adapter.model, runtime) for name, adapter in adapters.items()}
    job = DreamBoothJob(
        plan=plan,
        base=base,
        material=material,
        process=process.to(runtime.device),
        adapters=adapters,
        networks=networks,
        training=_make_training(plan, base, adapters, networks, runtime),
        runtime=runtime,
        say=say,
        lock=lock,
        journal=journal,
        timings=timings,
        started=started,
    )
    _begin(job, checkpoint)
    return job


def _silent(line: str) -> None:
    """What the processes other than the first say."""


@contextmanager
def _timed(timings: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[what] = timings.get(what, 0.0) + time.perf_counter() - start


# -- before the base is loaded


def _check_split(settings: DreamBoothConfig, runtime: Runtime) -> None:
    """Raises InputError for what FSDP does not go with."""
    if not runtime.sharded:
        return
    for flag in ("quantize", "quantize_text_encoder"):
        if getattr(settings, flag) != "none":
            raise InputError(f"--{flag} does not go with FSDP, which splits plain weights; leave one of them out")
    if settings.compile:
        raise InputError("--compile does not go with FSDP, which hooks into the blocks; leave one of them out")
    if settings.clip_skip and settings.train_text_encoder:
        raise InputError("--clip_skip and --train_text_encoder together do not go with FSDP; leave one of them out")
    if settings.optimizer != "adamw" or settings.use_8bit_adam:
        wanted = "--use_8bit_adam" if settings.use_8bit_adam else f"--optimizer {settings.optimizer}"
        raise InputError(f"FSDP splits the optimizer's numbers too, which {wanted} does not take; leave it out")


def _check_offload(settings: DreamBoothConfig, runtime: Runtime) -> None:
    """Raises InputError where blocks that are loaded one after another would be so on several processes."""
    if settings.offload == "group" and runtime.world > 1:
        raise InputError(
            f"--offload group is for a single process, and there are {runtime.world}; start one, or let FSDP split the "
            "base over them"
        )


def _from_dataset(settings: DreamBoothConfig, output: Path, runtime: Runtime) -> DreamBoothConfig:
    """The settings with the folder of the data set's pictures in."""
    make_writable(output)
    with runtime.accelerator.main_process_first():  # one process writes the pictures, the others find them
        folder = dataset_pictures(settings, output)
    named = copy.copy(settings)
    named.instance_data_dir = str(folder)
    return named


def make_writable(folder: Path) -> None:
    """Make `folder` and try to write there. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write to --output_dir {folder} ({reason}); give another folder") from None


def _claim(folder: Path) -> FolderLock:
    try:
        return FolderLock(folder)
    except FolderInUse as error:
        raise InputError(f"{error}; wait for it, or give another --output_dir") from None


# -- the base and the pictures


def _load(settings: DreamBoothConfig, runtime: Runtime, say: Say) -> Base:
    with runtime.accelerator.main_process_first():  # one process fetches, the others find it in the cache
        base = load_base(**settings.of_base(), waits=True, dtype=runtime.dtype)
    base.prompt_options = replace(base.prompt_options, guidance=settings.training_guidance_scale)
    base.family.check_prompts(base.pipeline, base.prompt_options)
    _check_other(settings, base)
    parameters = sum(p.numel() for p in base.denoiser.parameters())
    say(
        f"base: {base.name} ({base.family.name}, {parameters / 1e6:.1f} M parameters in the {base.family.denoiser}, "
        f"{base.resolution} px, {base.noise().prediction})"
    )
    if base.note:
        say(f"      {base.note}")
    told = settings.training_guidance_scale is not None or not base.family.guided(base.pipeline)
    if settings.guidance_scale is not None and not told:
        say(
            "note: --guidance_scale is of the pictures here, and in diffusers' script of this base of the training; "
            "that is --training_guidance_scale, which stays at 1"
        )
    return base


def _check_other(settings: DreamBoothConfig, base: Base) -> None:
    """Raises InputError where --sample_with names no base of the same family: before training, not after it."""
    if settings.sample_with is None:
        return
    family = find_family(settings.sample_with)
    if family is not base.family:
        raise InputError(
            f"--sample_with {settings.sample_with} is a {family.name}, and the trained base a {base.family.name}; give "
            "a base of the same family"
        )


def _list_pictures(settings: DreamBoothConfig) -> Listing:
    """All pictures are looked at, none is decoded yet: how large they are wanted is for the base to say."""
    prompt = None if settings.instance_prompt else folder_prompt
    listing = list_folder(settings.instance_data_dir, captions=settings.use_captions, prompt=prompt)
    check_folder(listing)
    check_class_pictures(settings)
    return listing


def _decode(plan: Plan, listing: Listing, say: Say) -> tuple[InstanceImage, ...]:
    pictures = decode_files(listing, resolution=plan.resolution)
    for note in pictures.notes:
        say(f"note: {note}")
    return pictures.images


def _announce(plan: Plan, pictures: tuple[InstanceImage, ...], say: Say) -> None:
    captioned = sum(picture.caption is not None for picture in pictures)
    source = "" if plan.settings.instance_prompt else " (from the folder's name; --instance_prompt gives another)"
    captions = f", {captioned} with a caption of its own" if captioned else ""
    say(f"pictures: {len(pictures)} in {plan.settings.instance_data_dir}{captions}")
    say(f'prompt: "{plan.prompts.instance}"{source}')
    unsaid = note_unsaid(plan.prompts, [picture.caption for picture in pictures])
    if unsaid:
        say(f"note: {unsaid}")


def _announce_heldout(
    plan: Plan, pictures: tuple[InstanceImage, ...], heldout: tuple[InstanceImage, ...], say: Say
) -> None:
    names = ", ".join(shown(picture.name) for picture in heldout[:_TOLD]) + (", ..." if len(heldout) > _TOLD else "")
    say(f"held out: {len(heldout)} ({names}), measured every {plan.evaluate_every} steps")
    again = seen_again([picture.image for picture in heldout], [picture.image for picture in pictures])
    if all(again):
        say(
            "note: all pictures that are held out are also among those to learn from, so that their likeness says what "
            "is remembered; give a number, which keeps pictures out, or a folder of others"
        )
        return
    for picture, learned in zip(heldout, again, strict=True):
        if learned:
            say(f"note: {shown(picture.name)} is held out, and the same picture is among those to learn from")


def _make_material(
    plan: Plan,
    base: Base,
    pictures: tuple[InstanceImage, ...],
    class_pictures: tuple[InstanceImage, ...],
    heldout: tuple[InstanceImage, ...],
    runtime: Runtime,
    say: Say,
    timings: dict[str, float],
) -> Material:
    with _timed(timings, "load"):
        base.load("vae", *base.family.text_encoders)
    with _timed(timings, "encode"):
        examples = _encode(plan, base, pictures, plan.prompts.instance, "pictures", runtime)
        class_examples = _encode(plan, base, class_pictures, plan.prompts.class_, "class pictures", runtime)
        measured = _encode_heldout(plan, base, heldout, runtime)
        prompts = prompts_of(examples, class_examples, measured)
        if plan.settings.preserve_class:
            prompts += [plan.prompts.of_class(prompt) for prompt in prompts_of(examples)]
        conditions = _encode_prompts(plan, base, list(dict.fromkeys(prompts)), runtime, say)
        if not (plan.settings.train_text_encoder or base.family.light_text_encoders):  # some have billions of numbers
            _drop_text_encoders(plan, base, _asked(plan, base, measured), runtime)
    kept = [HeldOut(picture.image, example) for picture, example in zip(heldout, measured, strict=True)]
    return Material([picture.image for picture in pictures], examples, class_examples, conditions, kept)


def _asked(plan: Plan, base: Base, measured: Sequence[Example]) -> Sequence[str]:
    """The prompts of measurements."""
    if not measured:
        return ()
    captions = [example.prompt for example in measured]
    return ask(captions, plan.prompts.instance, plan.prompts.class_, base.embedded)[0].prompts


def _encode_heldout(plan: Plan, base: Base, pictures: tuple[InstanceImage, ...], runtime: Runtime) -> list[Example]:
    """Their middle parts: what they are measured on has nothing random in it."""
    s = plan.settings
    framing = Framing(plan.resolution, True, False, s.aspect_ratio_buckets, 1)
    return encode_examples(base, pictures, plan.prompts.instance, framing, runtime.device, s.seed)


def _encode(
    plan: Plan, base: Base, pictures: tuple[InstanceImage, ...], prompt: str, what: str, runtime: Runtime
) -> list[Example]:
    s = plan.settings
    framing = Framing(plan.resolution, s.center_crop, s.random_flip, s.aspect_ratio_buckets, s.num_crop_variants)
    cache = Path(s.latent_cache_dir).expanduser() if s.latent_cache_dir else None

    def progress(items: Iterable[InstanceImage]) -> Iterable[InstanceImage]:
        return tqdm(items, desc=f"encoding {what}", disable=not runtime.main or len(pictures) < 20, leave=False)

    return encode_examples(base, pictures, prompt, framing, runtime.device, s.seed, cache, progress)


def _encode_prompts(plan: Plan, base: Base, prompts: list[str], runtime: Runtime, say: Say) -> dict[str, Any]:
    """Conditions of every training prompt, or its token ids when the text encoders are trained."""
    family, pipeline, device = base.family, base.pipeline, runtime.device
    _tell_cut(plan, base, prompts, say)
    if plan.settings.train_text_encoder:
        if plan.chunks > 1:
            chunked = {p: tokenize_chunks(family, pipeline, p, plan.chunks) for p in prompts}
            return {p: [i.to(device) for i in ids] for p, ids in chunked.items()}
        ids = family.tokenize(pipeline, prompts, device, base.prompt_options)
        return {p: [i[n : n + 1].to(device) for i in ids] for n, p in enumerate(prompts)}
    if plan.chunks > 1:
        encoded = encode_chunks(family, pipeline, prompts, plan.chunks, device, base.prompt_options)
    else:
        encoded = family.encode_prompts(pipeline, prompts, device, base.prompt_options)
    return {prompt: moved(conditions, device) for prompt, conditions in encoded.items()}


def _tell_cut(plan: Plan, base: Base, prompts: list[str], say: Say) -> None:
    """Say of prompts which end of them is not read. prompts: of the training."""
    family, pipeline = base.family, base.pipeline
    more = "; --max_token_length 225 reads more" if plan.chunks == 1 and takes_chunks(family, pipeline) else ""
    lines = []
    asked = plan.validation_prompts if plan.settings.validation_prompt else ()
    for prompt in dict.fromkeys([*prompts, *asked]):
        if prompt in prompts and plan.chunks > 1:  # samples are drawn by the base's own pipeline
            cut = left_out(family, pipeline, prompt, plan.chunks)
        else:
            cut = family.left_out(pipeline, prompt, base.prompt_options)
        if cut:
            hint = more if prompt in prompts else ""
            lines.append(f'"{_begun(prompt)}" is longer than this base reads; it will not see: "{_begun(cut)}"{hint}')
    for line in lines[:_TOLD]:
        say(f"note: {line}")
    if len(lines) > _TOLD:
        say(f"note: {len(lines) - _TOLD} more prompts are longer than this base reads")


def _begun(text: str) -> str:
    """The beginning of a text that may be as long as a file."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def _drop_text_encoders(plan: Plan, base: Base, asked: Sequence[str], runtime: Runtime) -> None:
    """Keep what the samples and the measurements of the run will ask of the text encoders, and let them go."""
    cpu = torch.device("cpu")
    encoded = encode_inputs(base, (*plan.validation_prompts, *asked), runtime.device)
    base.inputs |= {prompt: moved(inputs, cpu) for prompt, inputs in encoded.items()}
    base.drop_text_encoders()


# -- networks and adapters


def noise_of(settings: DreamBoothConfig, base: Base) -> NoiseProcess:
    """The noise process of a run with these settings. Raises InputError for settings that the base does not have."""
    return base.noise(NoiseOptions(**{f.name: getattr(settings, f.name) for f in fields(NoiseOptions)}))


def targets_of(plan: Plan, base: Base) -> dict[str, Target]:
    """DashConfig's target for each component to adapt, the denoiser first."""
    targets = {base.family.denoiser: plan.target}
    if plan.settings.train_text_encoder:
        for name, encoder in zip(base.family.trained_encoders, base.trained_encoders(), strict=True):
            targets[name] = base.family.text_target(name, encoder, base.prompt_options)
    return targets


def _find_precise(base: Base, adapters: dict[str, Adapter], runtime: Runtime, say: Say) -> None:
    """Have the launch read from the base's files, one at a time, the weights that were quantized or rounded to half
    precision, and say so. Where the base has no such files, it takes what the networks compute with."""
    found, lacking = 0, 0
    for name, adapter in adapters.items():
        for module, layer in adapter.layers.items():
            stored = base.precise(name, module, (layer.out_features, layer.in_features))
            if stored is None:
                lacking += layer.quantized or runtime.dtype != torch.float32
            elif layer.quantized or stored.tensor.dtype != weight_matrix(layer.base).dtype:
                layer.precise_weight, found = stored, found + 1
    if found:
        say(f"launch: the precise weights of {found} layers are read from the base's files")
    if lacking:
        say(f"launch: {lacking} layers have no precise weights in the base's files; it takes those in use")


def _ready_networks(plan: Plan, base: Base, runtime: Runtime, timings: dict[str, float]) -> None:
    """Load what is not loaded yet, cast the networks that are trained, and set them up."""
    with _timed(timings, "load"):
        base.load()
    checkpointing = plan.settings.gradient_checkpointing
    if plan.settings.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    _cast(base.denoiser, runtime)
    if checkpointing:
        cast(Any, base.denoiser).enable_gradient_checkpointing()
    if plan.settings.train_text_encoder:
        for encoder in base.trained_encoders():
            _cast(encoder, runtime)
            encoder.to(runtime.device)
            if checkpointing:
                cast(Any, encoder).gradient_checkpointing_enable({"use_reentrant": False})
    if plan.settings.offload == "group":
        Offload(base.denoiser, runtime.device, base.family.units)


def _cast(network: nn.Module, runtime: Runtime) -> None:
    """Before a network goes to the device, which need not hold it in float32."""
    if runtime.dtype != torch.float32:
        cast_network(network, runtime.dtype)


def _inject(plan: Plan, base: Base, runtime: Runtime) -> dict[str, Adapter]:
    """Adapters by component, the denoiser first, which is on its device then."""
    offload = offload_of(base.denoiser)
    if offload is None:
        base.denoiser.to(runtime.device)
    adapters = {}
    for name, target in targets_of(plan, base).items():
        config = plan.settings.dash_config(plan.rank, target)
        seed_everything(plan.settings.seed, f"adapter of {name}")  # A begins with random numbers
        try:
            adapters[name] = inject(getattr(base.pipeline, name), config)
        except ValueError as error:
            raise InputError(f"--lora_target: {error}") from None
    if offload is not None:
        offload.place(base.denoiser)
    return adapters


def _spread(base: Base, plan: Plan, network: nn.Module, runtime: Runtime) -> nn.Module:
    if plan.settings.compile:
        network = cast(nn.Module, torch.compile(network))
    return runtime.spread(network, lambda name, module: type(module).__name__ in base.family.units)


def _make_training(
    plan: Plan, base: Base, adapters: dict[str, Adapter], networks: dict[str, nn.Module], runtime: Runtime
) -> Training:
    s = plan.settings
    factor = s.gradient_accumulation_steps * plan.train_batch_size * runtime.world if s.scale_lr else 1
    groups = parameter_groups(plan, base.family.denoiser, adapters, factor)
    rate = make_rate(
        plan.lr_scheduler, groups[0]["lr"], plan.max_train_steps, s.lr_warmup_steps, s.lr_num_cycles, s.lr_power
    )
    optimizer = make_optimizer(s, groups)
    return Training(
        list(networks.values()),
        [optimizer],
        rate,
        DashSchedule(adapters, plan.prelaunch_steps, optimizer, s.seed),
        accumulation=s.gradient_accumulation_steps,
        max_grad_norm=s.max_grad_norm,
        seed=s.seed,
        checkpoint_every=s.checkpointing_steps,
    )


def parameter_groups(plan: Plan, denoiser: str, adapters: dict[str, Adapter], factor: int) -> list[dict[str, Any]]:
    """A and B by component, and all dsigma, each with its learning rate times `factor`."""
    groups = []
    shifts: list[nn.Parameter] = []
    for name, adapter in adapters.items():
        named = list(adapter.named_parameters())
        shifts += [p for key, p in named if key.endswith(".dsigma")]
        factors = [p for key, p in named if not key.endswith(".dsigma")]
        rate = plan.learning_rate if name == denoiser else plan.text_encoder_lr
        groups.append({"params": factors, "lr": rate * factor})
    if shifts:
        groups.append({"params": shifts, "lr": plan.dash_lr * factor})
    return groups


# -- resuming


def _begin(job: DreamBoothJob, checkpoint: Path | None) -> None:
    """Resume from the checkpoint, or start afresh beside what an earlier run may have left."""
    if checkpoint is not None:
        job.restore(checkpoint)
        anew = "" if job.plan.settings.resume_from_checkpoint else "; --overwrite starts anew"
        job.say(f"resumed from {checkpoint} at step {job.training.step}{anew}")
        if job.training.step == job.plan.max_train_steps:
            job.say("note: that is all of --max_train_steps, so nothing more is trained; give more to go on")
    elif job.plan.settings.resume_from_checkpoint == "latest":
        job.say(f"note: there is no checkpoint in {job.plan.output} yet; starting from the beginning")
    job.runtime.wait()
    if job.runtime.main:
        if job.plan.settings.overwrite:  # what marks the folder as finished
            (job.plan.output / RUN).unlink(missing_ok=True)
        kept = put_aside(job.plan.output, job.training.step, job.plan.settings.overwrite)
        if kept:
            job.say(f"note: later checkpoints and adapters of an earlier run were moved to {kept}")
    job.runtime.wait()

"""What runs left on disk, read with care: a broken one is one sentence, never a traceback."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dash_vision.core.loading import probe_weight, read_adapters
from dash_vision.files.errors import InputError
from dash_vision.files.fingerprints import compare_probes
from dash_vision.files.lora import DIFFUSERS_NAME
from dash_vision.files.native import NATIVE_NAME, AdapterState
from dash_vision.runs.record import (
    METHODS,
    RECORDS,
    RUN,
    DreamBoothRecord,
    VtabRecord,
    read_record,
    record_file,
)
from dash_vision.runs.seeds import stream

# What pages and figures need among a DreamBooth run's arguments: numbers.
_ARGUMENTS = ("rank", "dash_k", "learning_rate", "resolution", "num_inference_steps", "guidance_scale")


@dataclass(frozen=True)
class DreamBoothRun:
    """A DreamBooth output folder."""

    folder: Path
    record: DreamBoothRecord

    @property
    def base(self) -> str:
        """The base's hub id or path, or MINIATURE."""
        return self.record.base.name

    @property
    def base_fingerprint(self) -> str:
        """By which the same base under another name is recognised: of the denoiser, which comes first."""
        return next(iter(self.record.base.fingerprints.values()))

    @property
    def prompt(self) -> str:
        """The instance prompt."""
        return self.record.instance_prompt

    @property
    def subject(self) -> str:
        """What follows "a photo of" in the instance prompt; the whole prompt when it has another form."""
        return self.record.subject

    @property
    def method(self) -> str:
        """ "LoRA" or "LoRA-Dash"."""
        return METHODS.get(self.record.method, self.record.method)

    @property
    def launch(self) -> int | None:
        """The step after which the dash was launched."""
        return self.record.launch.step if self.record.launch else None

    @property
    def losses(self) -> list[float]:
        """The loss of every optimizer step."""
        return self.record.losses

    def argument(self, name: str) -> Any:
        """A setting of the run."""
        return self.record.arguments[name]


@dataclass(frozen=True)
class VtabRun:
    """A run of train_vtab.py: the folder of its result.json, or of a val_result.json where test was left closed."""

    folder: Path
    record: VtabRecord

    @property
    def method(self) -> str:
        """As train_vtab.py calls it, "LoRA" and "LoRA-Dash" spelled out."""
        return METHODS.get(self.record.method, self.record.method)

    @property
    def launch(self) -> int | None:
        """The step after which the dash was launched; where only the curve tells of a launch, the one asked for."""
        if self.record.launch:
            return self.record.launch.step
        asked = {**self.record.arguments, **self.record.selected_settings}
        return int(asked["prelaunch_steps"]) if any(s.get("launched") for s in self._curve) else None

    @property
    def _curve(self) -> list[dict[str, Any]]:
        """The chosen candidate's epochs on train800."""
        selection = self.record.selection
        curve: list[dict[str, Any]] = selection["curves"][selection["candidate"]]
        return curve

    @property
    def undashed(self) -> bool:
        """Whether the model that was kept has no shifts though the dash was launched: its epoch came before that."""
        return self.record.launch is None and any(score["launched"] for score in self._curve)

    @property
    def scores(self) -> list[tuple[int, float, float | None]]:
        """(optimizer step, training loss, accuracy on val200 in percent) at every epoch's end of the chosen candidate's
        training on train800."""
        steps = -(-self.record.images["train800"] // self.record.arguments["batch_size"])
        return [(int(s["epoch"]) * steps, float(s["train_loss"]), s["val_accuracy"]) for s in self._curve]


Run = DreamBoothRun | VtabRun


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Every run in folders and, where they are none themselves, below them; and one sentence for each that is broken.

    A broken run costs itself only; one that several paths lead to is there once, under the first.
    """
    runs: list[Run] = []
    problems = []
    seen: set[str] = set()
    for path in distinct((Path(p).expanduser() for p in paths), set()):
        folders = [path]
        if path.is_dir() and not record_file(path):
            folders = sorted({file.parent for name in RECORDS for file in path.rglob(name)})
            if not folders:
                problems.append(
                    f"{path} holds no run.json and no result.json; give the output folders of finished runs"
                )
        for folder in distinct(folders, seen):
            record = record_file(folder)
            try:
                runs.append(read_vtab_run(record) if record and record.name != RUN else read_run(folder))
            except InputError as error:
                problems.append(str(error))
    return runs, problems


def distinct(folders: Iterable[Path], seen: set[str]) -> Iterator[Path]:
    """The folders that are not in `seen` under any path; adds them to it."""
    for folder in folders:
        real = os.path.realpath(folder)
        if real not in seen:
            seen.add(real)
            yield folder


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run, no two alike: its method, of a VTAB run its task and seed as well; and where that
    leaves some alike, for those their folders as in `short_names`."""
    names = [
        f"{run.record.task}, {run.method}, seed {run.record.seed}" if isinstance(run, VtabRun) else run.method
        for run in runs
    ]
    alike: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        alike.setdefault(name, []).append(i)
    for name, places in alike.items():
        if len(places) > 1:
            for i, folder in zip(places, short_names([runs[i].folder for i in places]), strict=True):
                names[i] = f"{name} ({folder})"
    return names


def short_names(paths: Sequence[Path]) -> list[str]:
    """The ends of paths from where they part: "2/lora/seed-0" and "3/dash/seed-1". All that tells two apart is there,
    nothing that all share above it; of a single path its last part."""
    real = [Path(os.path.realpath(path.expanduser())) for path in paths]
    shared = os.path.commonpath([path.parent for path in real])
    return [path.relative_to(shared).as_posix() for path in real]


def native_adapters(run: Run) -> dict[str, AdapterState]:
    """Component -> adapter of the run's native file; empty where it has none. Raises InputError for a broken one."""
    path = run.folder / NATIVE_NAME
    if not path.is_file():
        return {}
    try:
        return read_adapters(path)
    except InputError as error:
        raise InputError(str(error)) from None


def read_run(folder: str | Path) -> DreamBoothRun:
    """The run in `folder`. Raises InputError when it is missing, unfinished, cut short or of another kind."""
    folder = Path(folder).expanduser()
    path = folder / "run.json"
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the --output_dir of a run of train_dreambooth.py")
    if not path.is_file():
        raise InputError(
            f"{folder} holds no run.json; its run has not finished, or it is no run of train_dreambooth.py"
        )
    record = read_record(path)
    if not isinstance(record, DreamBoothRecord):
        raise InputError(f"{path} is of a run of train_vtab.py; this takes runs of train_dreambooth.py")
    run = DreamBoothRun(folder, record)
    _check_open_parts(path, lambda: all(math.isfinite(run.argument(name)) for name in _ARGUMENTS))
    if not (folder / DIFFUSERS_NAME).is_file():
        raise InputError(f"{folder} has no {DIFFUSERS_NAME}; make the run again")
    return run


def read_vtab_run(path: Path) -> VtabRun:
    """The run whose record `path` is. Raises InputError when it is cut short or of another version."""
    record = read_record(path)
    if not isinstance(record, VtabRecord):
        raise InputError(f"{path} is of a run of train_dreambooth.py; this takes results of train_vtab.py")
    run = VtabRun(path.parent, record)
    _check_open_parts(path, lambda: bool(run.scores) and (run.launch or 0) >= 0 and run.undashed is not None)
    return run


def _check_open_parts(path: Path, whole: Callable[[], bool]) -> None:
    """Raises InputError where what is read here of a record's settings and curves is not there."""
    try:
        if whole():
            return
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError):
        pass
    raise InputError(f"{path} is of another version of dash-vision; make the run again")


def read_json(path: Path) -> Any:
    """What a file of JSON holds. Raises InputError when it is cut short or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); finish the run again") from None


def no_loading_bars() -> None:
    """Keep diffusers and transformers from drawing a bar for each model that they load."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def load_pipeline(run: DreamBoothRun, base: str | None = None) -> Any:
    """The stock diffusers pipeline that a run was trained on, in float32. Raises InputError.

    base: a hub id, folder or file to use instead of the one in the run's record.
    """
    from dash_vision.bases.loading import load_base

    no_loading_bars()
    specification = dict(run.record.base.specification)
    if base:
        specification |= {"name": base, "revision": None}  # a revision is of one hub id
    try:
        return load_base(**specification).pipeline
    except TypeError as error:
        raise InputError(f"{run.folder} records its base in another way ({error}); make the run again") from None
    except InputError as error:
        raise InputError(f"{error} (of {run.folder}; --base says where its base is now)") from None


def fitting_runs(
    pipeline: Any, runs: Mapping[str, DreamBoothRun], base: str | None = None
) -> tuple[dict[str, DreamBoothRun], list[str]]:
    """The runs whose adapters load in a pipeline that none is loaded in, and a sentence for each of the others.

    base: what the pipeline was loaded from, None for what the first run's record names. Raises InputError where none is
    left.
    """
    fitting, problems = {}, []
    for name, run in runs.items():
        try:
            _check_base(pipeline, run, base or next(iter(runs.values())).base)
            load_lora(pipeline, run)
            fitting[name] = run
        except InputError as error:
            problems.append(f"{name}: {error}")
        finally:
            pipeline.unload_lora_weights()
    if not fitting:
        raise InputError("; ".join(problems))
    return fitting, problems


def _check_base(pipeline: Any, run: DreamBoothRun, base: str) -> None:
    """Raises InputError when a run was not trained on the weights of a pipeline, which was loaded from `base`."""
    for component, state in native_adapters(run).items():
        part = getattr(pipeline, component, None)
        modules = dict(part.named_modules()) if part is not None else {}
        layers = {m: modules[m] for m in state.kinds if isinstance(getattr(modules.get(m), "weight", None), Tensor)}
        found = {m: probe_weight(layer) for m, layer in layers.items()}
        if len(found) < len(state.kinds) or compare_probes(found, state.probes):
            raise InputError(f"{run.folder} was trained on other weights than {base} holds; name its base by --base")


def dtype_name(dtype: torch.dtype) -> str:
    """As the command line calls it: "float16" and the like."""
    return str(dtype).removeprefix("torch.")


def same_base(first: DreamBoothRun, second: DreamBoothRun) -> bool | None:
    """Whether two runs were trained on the same weights, by the layers that both adapt; None where there are none.

    Raises InputError for a broken native file.
    """
    if first.base_fingerprint == second.base_fingerprint:
        return True
    a, b = (
        {f"{part}.{m}": probe for part, state in native_adapters(run).items() for m, probe in state.probes.items()}
        for run in (first, second)
    )
    common = a.keys() & b.keys()
    return compare_probes({m: a[m] for m in common}, {m: b[m] for m in common}) is None if common else None


def check_files(run: DreamBoothRun) -> None:
    """Raises InputError where a file of a run's adapter is missing or cut short, or its native one makes no sense."""
    for path in (run.folder / DIFFUSERS_NAME, run.folder / NATIVE_NAME):
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{path} is no complete .safetensors file ({error}); copy it again") from None
    native_adapters(run)


def load_lora(pipeline: Any, run: DreamBoothRun) -> None:
    """Load a run's adapter in a pipeline, as diffusers does. Raises InputError."""
    path = run.folder / DIFFUSERS_NAME
    try:
        pipeline.load_lora_weights(str(run.folder), weight_name=DIFFUSERS_NAME)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot load {path} in the base ({reason}); export it anew or make the run again") from None


def generate(
    pipeline: Any, prompts: Sequence[str], seed: int, numbers: Sequence[int], side: int, settings: Mapping[str, Any]
) -> list[Any]:
    """A picture of side x side pixels for each prompt, from the noise of (seed, its number), which is that of column
    `number` in a run's samples.png. settings: of the sampler. Raises InputError where memory does not suffice."""
    # Each picture has its own generator, on the CPU: its noise is the same for every method, batch, process and device.
    noises = [stream(seed, "sample", number) for number in numbers]
    # In float32 whatever the pipeline computes in: random numbers of half precision would be others.
    shape = (1, pipeline.unet.config.in_channels, side // pipeline.vae_scale_factor, side // pipeline.vae_scale_factor)
    latents = torch.cat([torch.randn(shape, generator=noise) for noise in noises]).to(pipeline.unet.dtype)
    what = f"{len(prompts)} pictures of {side} x {side} at once"
    with within_memory(what, "--dtype float16, a smaller --batch_size where there is one, or --device cpu"):
        made = pipeline(list(prompts), generator=noises, latents=latents, width=side, height=side, **settings)
    return list(made.images)


@contextmanager
def within_memory(what: str, instead: str) -> Iterator[None]:
    """Raises InputError where the GPU's memory does not suffice for `what`; instead: the flags to give then."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise InputError(f"the GPU's memory does not suffice for {what}; give {instead}") from None


def move(pipeline: Any, device: str, dtype: torch.dtype) -> None:
    """A pipeline to a device and a dtype. Raises InputError where the memory does not suffice."""
    with within_memory("the base", "--dtype float16, or --device cpu"):
        pipeline.to(device, dtype)


def usable_device(name: str | None = None) -> str:
    """The device of that name; None: the GPU where there is one. Raises InputError where torch cannot use it."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"--device is {name}, which cannot be used here ({reason}); give cpu, or leave it out"
        ) from None
    return name


def check_output(path: Path, folder: bool = False) -> None:
    """Raises InputError where the file `path` (folder: files in the folder `path`) cannot be written; makes nothing."""
    places = ([path] if folder else []) + list(path.absolute().parents)
    place = next(p for p in places if os.path.lexists(p))
    if not folder and path.is_dir():
        reason = "it is a folder"
    elif not place.is_dir():
        reason = f"{place} is no folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = f"{place} may not be written to"
    else:
        return
    raise InputError(f"cannot write {path}: {reason}; give another place")

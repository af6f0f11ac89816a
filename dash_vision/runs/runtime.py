"""Where a run computes: device, precision, and the processes of `accelerate launch`. Accelerate does the work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.quantized import is_quantized
from ..core.sharding import shard, whole
from ..files.errors import InputError, one_line
from .signals import StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator

_TRUE = ("true", "yes", "on", "1")
PRECISIONS = ("no", "fp16", "bf16")
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


# -- what a device computes fast in


def fast_in_bf16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware; one that does not is ten times slower."""
    kind = torch.device(device).type
    if kind == "cpu":  # torch tells it nowhere else
        asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in asked)
    return kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device | str) -> torch.autocast:
    """bfloat16 autocast on a device that is fast in it, none on others."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=fast_in_bf16(device))


# -- the runtime


class Runtime:
    """The device, the precision and the processes of a run, and what this package asks of them.

    accelerator: accelerate's, of which there is one in a process. sharded: the trained networks are split over the
    processes (FSDP) instead of a whole one on each.
    """

    def __init__(self, accelerator: Accelerator, sharded: bool = False) -> None:
        self.accelerator = accelerator
        self.sharded = sharded and accelerator.num_processes > 1
        # accelerate launch passes no signal on: its worker watches whether it lives. A shell may go, as under nohup.
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    @property
    def precision(self) -> str:
        """One of PRECISIONS."""
        return str(self.accelerator.mixed_precision)

    @property
    def dtype(self) -> torch.dtype:
        """What frozen networks are kept in; adapters always train in float32."""
        return DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager[None]:
        """Forward passes in the run's precision."""
        return cast(AbstractContextManager[None], self.accelerator.autocast())

    # -- networks over several processes

    def spread(self, network: nn.Module, is_unit: Callable[[str, nn.Module], bool]) -> nn.Module:
        """`network` on all processes: split over them, in place, with the weights of a block that `is_unit(name,
        module)` names together at a time; or under DistributedDataParallel; itself in a single process.

        Raises InputError where FSDP cannot be done here.
        """
        if self.world == 1:
            return network
        if self.sharded:
            try:
                shard(network, is_unit, self.device)
            except ValueError as error:
                raise InputError(str(error)) from None
            return network
        devices = [self.device.index] if self.device.type == "cuda" else None
        # To begin with, the first process's weights would be sent to all, which quantized ones cannot be; each process
        # has read the same.
        sends = not any(map(is_quantized, network.modules()))
        for parameter in () if sends else network.parameters():
            if parameter.requires_grad:
                dist.broadcast(parameter.detach(), src=0)
        # The launch leaves equal buffers on all processes: nothing to send in every step.
        return nn.parallel.DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False, init_sync=sends
        )

    @contextmanager
    def unsynchronized(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        """Gradients stay on each process while batches accumulate."""
        with ExitStack() as stack:
            for network in networks:
                if isinstance(network, nn.parallel.DistributedDataParallel):
                    stack.enter_context(network.no_sync())
                elif self.sharded:
                    synchronize = cast(Any, network).set_requires_gradient_sync
                    synchronize(False)
                    stack.callback(synchronize, True)
            yield

    # -- one optimizer step

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """accelerate's wrapper of the optimizer, which leaves out a step whose fp16 gradients overflowed."""
        return self.accelerator.prepare(optimizer)

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`, scaled under fp16."""
        self.accelerator.backward(loss)

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> Tensor:
        """Clip the gradients to `norm`, in place; their norm before, whole on every process."""
        return whole(cast(Tensor, self.accelerator.clip_grad_norm_(list(parameters), norm)))

    @property
    def step_was_skipped(self) -> bool:
        """Whether the last optimizer step was left out because its fp16 gradients overflowed."""
        return bool(self.accelerator.optimizer_step_was_skipped)

    # -- between processes

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        return self.total(value) / self.world

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def agreed(self, value: float) -> float:
        """The first process's value, on all of them."""
        if self.world == 1:
            return value
        # MPS has no float64; a single process needs no tensor, so that only CPUs and CUDA devices come here.
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return tensor.item()

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor.item())

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process; all of them learn it at the same step."""
        return bool(self.largest(int(flag)))

    def asked_to_stop(self, stop: StopRequest) -> int:
        """The number of the signal by which any process was asked to stop, 0 for none; the same on all processes.

        SIGTERM when the launcher of this process has ended: nobody would ever stop it otherwise.
        """
        orphaned = self._launcher is not None and os.getppid() != self._launcher
        return self.largest(signal.SIGTERM if orphaned else stop.signal or 0)

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()

    def log(self, values: dict[str, float], step: int) -> None:
        """Give values to the trackers that the run has."""
        self.accelerator.log(values, step=step)

    @contextmanager
    def tracking(self, name: str, settings: Mapping[str, object]) -> Iterator[None]:
        """Trackers, where the run has any, take what `log` gives them under `name` until the block ends."""
        self.accelerator.init_trackers(name, {key: str(value) for key, value in settings.items()})
        try:
            yield
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []

    def release(self) -> None:
        """Let go of what `prepare` has kept, before another training in the same process."""
        self.accelerator.free_memory()

    def close(self) -> None:
        """End trackers and the process group."""
        self.accelerator.end_training()


def make_runtime(
    mixed_precision: str | None = None,
    device: str = "auto",
    log_with: str | None = None,
    folder: Path | None = None,
    logging_dir: str = "logs",
) -> Runtime:
    """The runtime of this process.

    mixed_precision: one of PRECISIONS, or None for accelerate's own setting. device: "auto", "cpu", "cuda:1", "mps",
    ...; log_with, folder, logging_dir: the tracker's name, the run's folder and the tracker's folder inside it. Raises
    InputError for a device or a tracker that is not there, and as `take_sharding`.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

    sharded = take_sharding()
    _check_tracker(log_with)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not several:
        device = _choose(device)
    _forget_precision(mixed_precision)
    project = ProjectConfiguration(str(folder), str(folder / logging_dir)) if folder else None
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            # Without being told, accelerate starts no process group where there is no GPU: each process would train by
            # itself.
            cpu=device == "cpu" or (several and not torch.accelerator.is_available()),
            log_with=log_with,
            project_config=project,
            # The others wait while one fetches a base or draws the samples.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
        )
    except ValueError as error:
        raise InputError(f"{one_line(error)}; give another --mixed_precision") from None
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # On a CPU accelerate leaves autocast and loss scaler out, without a word; torch has both.
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu")
    return Runtime(accelerator, sharded)


def usual_precision(device: str = "auto") -> str | None:
    """What `make_runtime` is to compute in where nothing is asked for: None under accelerate launch, whose setting
    counts then; else "bf16" where the device is fast in it, and "no" elsewhere."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return None
    if device == "auto":
        usual = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = str(usual or "cpu")
    try:
        return "bf16" if fast_in_bf16(device) else "no"
    except RuntimeError:  # no such device, as `make_runtime` will say
        return "no"


def _choose(name: str) -> str:
    """The device of that name, told to accelerate; "auto" leaves the choice to it."""
    if name in ("auto", "cpu"):
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        return name
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InputError(f"there is no device {name!r} ({one_line(reason)}); use --device auto") from None
    os.environ["ACCELERATE_TORCH_DEVICE"] = name
    return name


def _forget_precision(mixed_precision: str | None) -> None:
    """accelerate keeps one precision and one device for a process, and refuses another; a process that makes several
    runs in turn may want others each time."""
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        AcceleratorState._reset_state(reset_partial_state=True)


def _check_tracker(name: str | None) -> None:
    if name in (None, "all"):
        return
    from accelerate.tracking import get_available_trackers

    installed = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if name not in installed:
        raise InputError(
            f"--report_to is {name}; installed trackers: {', '.join(installed) or 'none'}; tensorboard and wandb come "
            "with pip install 'dash-vision[trackers]'"
        )


def device_name(device: torch.device) -> str:
    """What computed a result, for its reader."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {'1 thread' if threads == 1 else f'{threads} threads'}"


# -- splitting a model over the processes

# What accelerate launch says to its processes when a configuration splits the model over them.
_SHARDED = {"DeepSpeed": "ACCELERATE_USE_DEEPSPEED", "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM"}
_FSDP = "ACCELERATE_USE_FSDP"
_FSDP_REFUSED = {
    "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", "the frozen base is split over the processes already"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("fsdp_activation_checkpointing", "--gradient_checkpointing does the same"),
}


def take_sharding() -> bool:
    """Whether accelerate's configuration asks for FSDP, which is then left to sharding.shard: accelerate splits no
    model on CPUs, one model only, and by rules of its own.

    Takes the request out of the environment: transformers, for one, would load nothing on all but the first process.
    Raises InputError for DeepSpeed, Megatron-LM, FSDP 1, and settings of FSDP that are not done here.
    """
    for name, variable in _SHARDED.items():
        if _is_set(variable):
            raise InputError(
                f"accelerate's configuration asks for {name}, which splits the model over the processes and is not "
                "done here; use FSDP (fsdp_version: 2), or accelerate launch --multi_gpu with a whole base on each"
            )
    if not _is_set(_FSDP):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise InputError(
            f"accelerate's configuration asks for FSDP {version}, which splits the model over the processes and "
            "flattens the layers that adapters sit on; set fsdp_version: 2 (accelerate to-fsdp2 converts the file), or "
            "use accelerate launch --multi_gpu"
        )
    for variable, (setting, why) in _FSDP_REFUSED.items():
        if _is_set(variable):
            raise InputError(f"accelerate's configuration sets {setting}: true, which is not done here; {why}")
    del os.environ[_FSDP]
    return True


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in _TRUE


# -- errors of torch that mean something to the user


def compile_failure(error: BaseException) -> str | None:
    """What to tell the user of an error by which torch.compile gave up; None for any other error."""
    # By name: the module with the class takes seconds to import.
    if not any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__):
        return None
    reason = str(getattr(error, "inner_exception", None) or error).strip().split("\n")[0]
    return (
        f"torch.compile cannot compile the network here ({one_line(reason)}); leave --compile out, or install what it "
        "needs: a C++ compiler on a CPU, Triton on a GPU"
    )


def memory_failure(error: BaseException, advice: str) -> str | None:
    """What to tell the user, with `advice`, of a memory that does not suffice; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory does not suffice; {advice}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's CPU allocator
        return f"the memory does not suffice; {advice}"
    return None

"""Models that FSDP has split over the processes: their tensors read and written whole.

torch's fully_shard keeps of every parameter one part on each process and puts the whole together only while a block
computes. What happens between steps (a launch, a checkpoint, an export) needs whole tensors again; here they come from
all processes, one at a time. Every process has to take part: what is said to gather has to be called on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor only: a DTensor, told by what it can do, not by an import."""
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, detached, or the whole of one that is split, gathered from all processes."""
    return cast(Any, tensor.detach()).full_tensor() if is_sharded(tensor) else tensor.detach()


def whole_state(state: Any) -> Any:
    """Nested dictionaries, lists and tuples (an optimizer's state_dict(), say) with every tensor whole; gathers."""
    if isinstance(state, Tensor):
        return whole(state)
    if isinstance(state, dict):
        return {key: whole_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole_state(value) for value in state)
    return state


def split_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, in the way `parameter` of the same shape is split; every process gets its
    part of the first one's tensor. For a parameter that is not split, the tensor itself."""
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    split = cast(Any, parameter)
    value = tensor.detach().to(parameter.device, parameter.dtype).contiguous()
    return distribute_tensor(value, split.device_mesh, split.placements)


@torch.no_grad()
def write(parameter: Tensor, value: Tensor) -> None:
    """Write a whole `value` into a parameter or buffer in place, split or not."""
    parameter.copy_(split_like(value, parameter))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """optimizer.load_state_dict for a state of whole tensors, whatever way the parameters are split. Raises ValueError
    for a state of parameters that this optimizer does not have."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    strange = [number for number in state["state"] if not 0 <= number < len(parameters)]
    if strange:
        raise ValueError(f"the optimizer's state is of parameter {strange[0]}; there are {len(parameters)}")

    def fitted(number: int, value: Any) -> Any:
        alike = isinstance(value, Tensor) and value.shape == parameters[number].shape
        return split_like(value, parameters[number]) if alike else value

    moments = {n: {key: fitted(n, v) for key, v in values.items()} for n, values in state["state"].items()}
    optimizer.load_state_dict({**state, "state": moments})


def shard(model: nn.Module, is_unit: Callable[[str, nn.Module], bool], device: torch.device) -> None:
    """Split `model` over all processes, in place: fully_shard on every module that `is_unit(name, module)` names, whose
    weights are together while it computes, and on the rest as one. Parameters become DTensors: an optimizer is made
    afterwards. Needs a process group. Raises ValueError where this PyTorch cannot do it.
    """
    _check_mean(device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    units = [module for name, module in model.named_modules() if name and is_unit(name, module)]
    for module in [*reversed(units), model]:  # inner ones first
        # Also the outermost part is split again after a forward pass, so that between passes every parameter is.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _check_mean(device: torch.device) -> None:
    """FSDP takes the mean of the gradients by an operation that gloo refuses before PyTorch 2.8, and for which it gives
    the sum in some releases after it, silently. Raises ValueError for both."""
    world = dist.get_world_size()
    mean = torch.zeros(1, device=device)
    try:
        # The newer name of one operation, where there is one: that is what fully_shard calls.
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        scatter(mean, torch.ones(world, device=device), op=dist.ReduceOp.AVG)
        problem = None if mean.item() == 1 else f"it gives {mean.item():g} for the mean of ones"
    except (RuntimeError, ValueError, NotImplementedError) as error:
        problem = " ".join(str(error).split())[:200]
    if problem:
        raise ValueError(
            f"FSDP cannot average gradients on {device.type} with PyTorch {torch.__version__} ({problem}); use a newer "
            "PyTorch, or accelerate launch --multi_gpu with a whole base on each process"
        )

"""Where a run computes: device, precision, and the processes of `accelerate launch`."""

from __future__ import annotations

import os

import torch

from ..files.errors import InputError, one_line

_TRUE = ("true", "yes", "on", "1")


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

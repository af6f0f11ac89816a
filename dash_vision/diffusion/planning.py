"""`dash-vision plan`: what a run will take of memory, before anything is fetched or loaded, and what makes it fit."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..files.errors import InputError
from ..runs.cores import choose_threads
from ..runs.faults import fail, printable_streams, report
from ..runs.settings import option, parse
from .command import quiet
from .config import BASE, DreamBoothConfig

if TYPE_CHECKING:
    from ..bases.loading import Base
    from .estimate import Estimate

DESCRIPTION = "What a DreamBooth run will take of memory, found without its weights. It takes the run's own settings."
EPILOG = """examples:
  dash-vision plan --pretrained_model_name_or_path black-forest-labs/FLUX.2-klein-base-4B --mixed_precision bf16
  dash-vision plan --pretrained_model_name_or_path sdxl/ --resolution 768 --budget 12GB
"""
GIB = 2**30
OF_CUDA = GIB // 2  # what CUDA itself takes of a GPU, and allocators round up, about
OF_PROGRAM = GIB  # what Python and the libraries take of the machine's memory, about
_SIDES = (768, 512)


@dataclass
class PlanConfig(DreamBoothConfig):
    """The settings of the run, and what is asked of it."""

    budget: str | None = option(None, BASE, "memory of the GPU, such as 24GB: which flags make the run fit into it")
    no_gpu: bool = option(False, BASE, "the run will have no GPU")

    def _check_source(self) -> None:
        """Pictures make no difference."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. The exit status: 1 where nothing fits into the budget."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with printable_streams():
        config = parse(PlanConfig, DESCRIPTION, EPILOG, words)
        try:
            return _print(config)
        except InputError as error:
            return fail(error, 2)
        except Exception as error:
            return fail(report(error, None, words), 1)


def _print(config: PlanConfig) -> int:
    budget = None if config.budget is None else parse_size(config.budget)
    quiet()
    choose_threads()
    from ..bases.loading import load_base

    config.instance_prompt = config.instance_prompt or "a photo of sks dog"
    base = load_base(**config.of_base(), without_weights=True)
    found = estimate_for(config, base)
    print(table(found, not config.no_gpu))
    if budget is None:
        return 0
    if _taken(config, found) <= budget:
        print(f"It fits into {config.budget}.")
        return 0
    return _advise(config, base, budget)


def parse_size(text: str) -> int:
    """Bytes of "24GB". A card of 24 GB has 24 * 2**30 bytes. Raises InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:G|GB|GiB)?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise InputError(f"--budget is {text}; it takes a number of gigabytes, such as 24GB")
    return int(float(match[1]) * GIB)


def _taken(config: PlanConfig, found: Estimate) -> int:
    """Bytes of what the budget is of, with what CUDA or the program takes."""
    return found.host + OF_PROGRAM if config.no_gpu else found.device + OF_CUDA


def estimate_for(config: PlanConfig, base: Base) -> Estimate:
    """The estimate of a run with these settings on a base whose networks have no weights."""
    from ..runs.runtime import DTYPES
    from .estimate import estimate
    from .plan import make_plan
    from .prompts import Prompts

    prompts = Prompts(str(config.instance_prompt), str(config.class_prompt or ""))
    plan = make_plan(config, prompts, base)
    return estimate(plan, base, DTYPES[config.mixed_precision or "no"], not config.no_gpu)


def table(found: Estimate, gpu: bool) -> str:
    """The stages of a run side by side, in GiB."""
    rows = list(dict.fromkeys(part for stage in found.stages for part in stage.device))
    head = ["GPU memory in GiB" if gpu else "memory in GiB", *(stage.name for stage in found.stages)]
    lines = [[row, *(_gib(stage.device.get(row)) for stage in found.stages)] for row in rows]
    if gpu:
        lines.append(["together", *(_gib(stage.total) for stage in found.stages)])
    lines.append(["the machine's own memory" if gpu else "together", *(_gib(stage.host) for stage in found.stages)])
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in [head, *lines]]
    if gpu:
        text.append(f"At most {_gib(found.device)} GiB of the GPU, and about {_gib(OF_CUDA)} more for CUDA itself;")
    place = "of the machine's memory" if gpu else "of memory"
    text.append(f"{_gib(found.host)} GiB {place} at most, and about {_gib(OF_PROGRAM)} more for the program.")
    if found.spectra:
        text.append(
            f"The decompositions for the launch are made ahead and take up to {_gib(found.spectra)} GiB of the "
            "machine's memory, of which they leave a quarter free. Making one takes up to "
            f"{_gib(found.decomposing)} GiB more while it lasts."
        )
    return "\n".join(text)


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:.1f}" if size >= GIB / 10 else f"{size / GIB:.2f}"


# -- what makes a run fit


def _advise(config: PlanConfig, base: Base, budget: int) -> int:
    """Print what further flags give, one after another, until the run fits. The exit status."""
    settings, flags = copy.copy(config), dict[str, Any]()
    print(f"It does not fit into {config.budget}. With")
    for changes in _savings(config, base):
        flags |= changes
        for name, value in changes.items():
            setattr(settings, name, value)
        taken = _taken(config, estimate_for(settings, base))
        words = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in flags.items())
        print(f"  {words}: {_gib(taken)} GiB{', which fits' if taken <= budget else ''}", flush=True)
        if taken <= budget:
            return 0
    return fail(
        f"no flags that this command knows make the run fit into {config.budget}; take a smaller base, or a larger GPU",
        1,
    )


def _savings(config: PlanConfig, base: Base) -> Iterator[dict[str, Any]]:
    """Settings that take less memory, each to be added to those before it: first what costs least of time, and last
    what changes what is learned from."""
    if config.mixed_precision in (None, "no"):
        yield {"mixed_precision": "bf16"}
    if not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if config.offload == "none" and not config.no_gpu:
        yield {"offload": "model"}
    batch = config.train_batch_size or base.defaults.train_batch_size
    if batch > 1:
        yield {"train_batch_size": 1, "gradient_accumulation_steps": batch * config.gradient_accumulation_steps}
    plain = config.quantize == "none"
    if plain and config.offload != "group" and not (config.no_gpu or config.compile):
        yield {"offload": "group"}
    if config.quantize_text_encoder == "none" and not base.family.light_text_encoders:
        yield {"quantize_text_encoder": "nf4"}
    apart = {} if config.no_gpu else {"offload": "model"}  # blocks of quantized weights are not moved
    if plain:
        yield {"quantize": "int8"} | apart
    if config.quantize != "nf4":
        yield {"quantize": "nf4"} | apart
    for side in _SIDES:
        if side < (config.resolution or base.resolution):
            yield {"resolution": side}

"""`dash-vision generate`: pictures from a run's base and adapter, with the settings that the run recorded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bases.quantization import QUANTIZATIONS
from ..diffusion.config import OFFLOADS
from ..files.errors import InputError
from ..runs.settings import at_least, read_lines, typed_prompts
from .adapters import DTYPES
from .folders import run_folder

_LARGEST_SCALE = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generate`."""
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="output folder of a DreamBooth run, or of it adapters/NAME"
    )
    parser.add_argument(
        "--prompts", nargs="+", metavar="PROMPT", default=[], help="or a text file of them; {} stands for the subject"
    )
    parser.add_argument("--prompts_file", type=Path, metavar="FILE", help="a text file with a prompt on every line")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", default=Path("generated"), help="default: generated")
    parser.add_argument("--num_images", type=int, metavar="N", default=1, help="pictures a prompt (default: 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the starting noise (default: the run's)")
    parser.add_argument("--num_inference_steps", type=int, metavar="N", help="sampling steps (default: the run's)")
    parser.add_argument("--guidance_scale", type=float, metavar="X", help="guidance (default: the run's)")
    parser.add_argument("--scale", type=float, metavar="X", default=1.0, help="weight of the adapter (default: 1)")
    parser.add_argument("--base", metavar="ID|PATH", help="where the base is now (default: as the run says)")
    parser.add_argument(
        "--offload",
        choices=OFFLOADS,
        default="none",
        help="what waits in the machine's memory, as in training (default: none)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the denoiser (default: on a GPU the run's)"
    )
    parser.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        help="the denoiser's weights; none for the unquantized base (default: the run's)",
    )


def run(args: argparse.Namespace) -> None:
    """Draw every prompt and write OUT/PROMPT-PICTURE.png. Raises InputError."""
    from ..files.lora import DIFFUSERS_NAME
    from ..files.native import NATIVE_NAME
    from ..runs.record import RUN, DreamBoothRecord, read_record

    at_least(args, 1, "num_images", "num_inference_steps")
    at_least(args, 0, "seed", "guidance_scale")
    at_least(args, -_LARGEST_SCALE, "scale")
    if args.run.is_file() and args.run.name not in (DIFFUSERS_NAME, NATIVE_NAME):
        raise InputError(
            f"{args.run} is not what is drawn with; give the run's folder, or one of its adapters/ (--save_lora_every)"
        )
    folder = run_folder(args.run)
    record = read_record(folder / RUN)
    if not isinstance(record, DreamBoothRecord):
        raise InputError(f"{folder} is no DreamBooth run; give the output folder of one")
    prompts = [prompt.replace("{}", record.subject) for prompt in _prompts(args)]
    _draw(args, record, prompts)


def _prompts(args: argparse.Namespace) -> list[str]:
    lines = read_lines(args.prompts_file, "--prompts_file") if args.prompts_file is not None else []
    prompts = [prompt.strip() for prompt in [*typed_prompts(args.prompts, "--prompts"), *lines] if prompt.strip()]
    if not prompts:
        raise InputError('there is no prompt; give --prompts "a {} in the snow" ... or --prompts_file FILE')
    return prompts


def _draw(args: argparse.Namespace, record: Any, prompts: Sequence[str]) -> None:
    import torch

    from ..bases.devices import cast_network, usable_device
    from ..bases.offloading import Offload
    from ..bases.recorded import check_recorded, load_lora, load_recorded
    from ..bases.sampling import Sampling, sample

    device = torch.device(usable_device(args.device))
    usual = DTYPES.get(record.mixed_precision, "float32") if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, args.dtype or usual)
    base = load_recorded(record.base, args.run, args.base, dtype, args.quantize)
    for note in check_recorded(base, record.base, args.run, args.base):
        print(note)
    cast_network(base.denoiser, dtype)
    load_lora(base, args.run if args.run.is_dir() else args.run.parent)
    if args.scale != 1:
        base.pipeline.set_adapters(base.pipeline.get_active_adapters(), args.scale)
    asked = record.arguments
    steps = args.num_inference_steps or int(asked["num_inference_steps"])
    guidance = float(asked["guidance_scale"]) if args.guidance_scale is None else args.guidance_scale
    how = Sampling(steps, guidance, (int(asked["resolution"]),) * 2, makes_room=args.offload != "none")
    if args.offload == "group":
        Offload(base.denoiser, device, base.family.units)
    places = [(p, n) for p in range(len(prompts)) for n in range(args.num_images)]
    # The first picture of a prompt has the noise of its column in samples.png.
    numbers = [n * 1000 + p for p, n in places]
    seed = record.seed if args.seed is None else args.seed
    pictures = sample(base, [prompts[p] for p, _ in places], seed, numbers, how, device, dtype)
    args.out.mkdir(parents=True, exist_ok=True)
    for (p, n), picture in zip(places, pictures, strict=True):
        path = args.out / f"{p:03d}-{n:02d}.png"
        picture.save(path)
        print(f"{path}: {prompts[p]}")

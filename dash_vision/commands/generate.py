"""`dash-vision generate`: pictures from a run's base and adapter, with the settings that the run recorded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bases.quantization import QUANTIZATIONS
from ..files.errors import InputError
from ..runs.settings import read_lines
from .adapters import DTYPES
from .recorded import load_recorded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generate`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of a DreamBooth run")
    parser.add_argument("--prompts", nargs="+", metavar="PROMPT", default=[], help="{} stands for the subject")
    parser.add_argument("--prompts_file", type=Path, metavar="FILE", help="a text file with a prompt on every line")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", default=Path("generated"), help="default: generated")
    parser.add_argument("--num_images", type=int, metavar="N", default=1, help="pictures a prompt (default: 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the starting noise (default: the run's)")
    parser.add_argument("--num_inference_steps", type=int, metavar="N", help="sampling steps (default: the run's)")
    parser.add_argument("--guidance_scale", type=float, metavar="X", help="guidance (default: the run's)")
    parser.add_argument("--scale", type=float, metavar="X", default=1.0, help="weight of the adapter (default: 1)")
    parser.add_argument("--base", metavar="ID|PATH", help="where the base is now (default: as the run says)")
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
    from ..runs.record import RUN, DreamBoothRecord, read_record

    record = read_record(args.run / RUN)
    if not isinstance(record, DreamBoothRecord):
        raise InputError(f"{args.run} is no DreamBooth run; give the output folder of one")
    prompts = [prompt.replace("{}", record.subject) for prompt in _prompts(args)]
    if args.num_images < 1:
        raise InputError(f"--num_images is {args.num_images}; it takes a whole number of 1 or more")
    _draw(args, record, prompts)


def _prompts(args: argparse.Namespace) -> list[str]:
    lines = read_lines(args.prompts_file, "--prompts_file") if args.prompts_file is not None else []
    prompts = [prompt.strip() for prompt in [*args.prompts, *lines] if prompt.strip()]
    if not prompts:
        raise InputError('there is no prompt; give --prompts "a {} in the snow" ... or --prompts_file FILE')
    return prompts


def _draw(args: argparse.Namespace, record: Any, prompts: Sequence[str]) -> None:
    import torch

    from ..bases.devices import cast_network
    from ..bases.sampling import Sampling, sample
    from ..files.lora import DIFFUSERS_NAME

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    usual = DTYPES.get(record.mixed_precision, "float32") if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, args.dtype or usual)
    base = load_recorded(record.base, args.base, dtype, args.quantize)
    cast_network(base.denoiser, dtype)
    try:
        base.pipeline.load_lora_weights(str(args.run), weight_name=DIFFUSERS_NAME)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot load {args.run / DIFFUSERS_NAME} in the base ({reason}); train it again") from None
    if args.scale != 1:
        base.pipeline.set_adapters(base.pipeline.get_active_adapters(), args.scale)
    asked = record.arguments
    steps = args.num_inference_steps or int(asked["num_inference_steps"])
    guidance = float(asked["guidance_scale"]) if args.guidance_scale is None else args.guidance_scale
    how = Sampling(steps, guidance, (int(asked["resolution"]),) * 2)
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

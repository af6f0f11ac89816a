"""The DreamBooth protocol.

Draws 4 pictures for each of the protocol's 25 prompts with every adapter and with the base alone, and scores them by
DINO, CLIP-I and CLIP-T. Pictures that are there already are kept. Under `accelerate launch -m eval subject ...` the
processes share the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dash_vision.files.errors import InputError
from dash_vision.measures.names import CLIP, DINO

from ..blocks import add_sampling, blocks_of, sampler_of
from .prompts import PICTURES_PER_PROMPT, PROMPT_LISTS

NAME, HELP = "subject", "scores of the DreamBooth protocol: DINO, CLIP-I and CLIP-T"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sampling(parser, "instead of the protocol's list; {} stands for the subject")
    parser.add_argument("--prompt_list", choices=tuple(PROMPT_LISTS), help="default: live for cats and dogs")
    parser.add_argument(
        "--images_per_prompt", type=int, default=PICTURES_PER_PROMPT, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--batch_size", type=int, default=4, metavar="N", help="pictures at once (default: 4)")
    parser.add_argument(
        "--clip", metavar="NAME", help=f"hub id or folder (default: {CLIP}; the miniature's own for it)"
    )
    parser.add_argument(
        "--dino", metavar="NAME", help=f"timm model, or none (default: {DINO}; the miniature's own ViT for it)"
    )
    parser.add_argument("--dino_checkpoint", metavar="FILE", help="its weights (.safetensors), instead of the hub's")
    parser.add_argument(
        "--keep_token", action="store_true", help="compare CLIP-T with the prompt that has the rare word"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder of pictures and result")


def run(arguments: argparse.Namespace) -> list[str]:
    """Draw and score; a sentence for each adapter that was left out. Raises InputError."""
    blocks, a = blocks_of(arguments), arguments
    if len(blocks) != 1:
        raise InputError(f"{len(blocks)} subjects given; this takes one --subject DIR with its --adapter NAME=OUT ...")
    from .jobs import Protocol
    from .protocol import evaluate

    how = Protocol(
        sampler=sampler_of(a),
        prompts=blocks[0].prompts,
        prompt_list=a.prompt_list,
        images_per_prompt=a.images_per_prompt,
        batch_size=a.batch_size,
        clip=a.clip,
        dino=a.dino,
        dino_checkpoint=a.dino_checkpoint,
        keep_token=a.keep_token,
    )
    return evaluate(blocks[0], a.out, how)

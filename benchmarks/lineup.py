"""Would somebody who never saw the subject pick it out of four? Line-ups of what benchmarks.individuals drew.

`python -m benchmarks.lineup OUT [--arm LoRA-Dash]` draws a page for every individual that OUT has: above, what the
trained model drew; below, four individuals of one kind and main colour in the same places, A to D, one of which is it.
`python -m benchmarks.lineup OUT --answers B A ...`, in the order of the pages, says how many of the answers are right.
The three others are drawn anew for every individual, from seeds that no benchmark trains on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image

from dash_vision.drawing.sheet import Row, draw_sheet, save_with_palette
from dash_vision.files.errors import InputError
from dash_vision.miniature.world.scenes import Scene, Subject, individual, random_pose, render

from .individuals import Arm, Case, arm_folder

LETTERS = "ABCD"
SHOWN = 5  # drawings, and pictures of each candidate


def candidates(case: Case) -> tuple[list[Subject], str]:
    """Four individuals of the case's kind and main colour, and the letter of its own among them."""
    rng = Random(f"lineup {case.seed}")
    subject = case.heldout[0].subject
    others: list[Subject] = []
    while len(others) < len(LETTERS) - 1:
        other = individual(rng.randrange(10_000, 10**9), case.kind)
        if other.colour == subject.colour:
            others.append(other)
    place = rng.randrange(len(LETTERS))
    return [*others[:place], subject, *others[place:]], LETTERS[place]


def page(case: Case, arm: Arm, number: int) -> Image.Image:
    """The line-up of one individual. Raises InputError where the arm drew nothing."""
    folder = arm_folder(case, arm, 0) / "pictures"
    files = [folder / f"{i:02d}.png" for i in range(SHOWN)]
    if not all(file.exists() for file in files):
        raise InputError(f"there are no drawings in {folder}; run benchmarks.individuals with this arm first")
    scenes = case.heldout[:SHOWN]
    rng = Random(f"lineup, poses {case.seed}")
    poses = [random_pose(rng) for _ in scenes]
    subjects, _ = candidates(case)
    rows = [
        Row(letter, "", [render(Scene(who, s.setting, pose)) for s, pose in zip(scenes, poses, strict=True)])
        for letter, who in zip(LETTERS, subjects, strict=True)
    ]
    drawn = Row("drawn", "by the model", [Image.open(file).convert("RGB") for file in files])
    columns = [str(scene.setting) for scene in scenes]
    return draw_sheet(drawn, columns, rows, f"{number}: which {case.kind} of A to D was drawn?", "")


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    share, z = right / count, 1.96
    middle, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)


def judged(keys: Sequence[str], answers: Sequence[str]) -> str:
    """How many answers are right, in words. Raises InputError where they are not one for each page."""
    if len(keys) != len(answers) or any(answer not in LETTERS for answer in answers):
        raise InputError(
            f"--answers takes a letter of {LETTERS} for each of {len(keys)} pages, got {' '.join(answers)}"
        )
    right = sum(key == answer for key, answer in zip(keys, answers, strict=True))
    low, high = interval(right, len(keys))
    wrong = [f"page {i}: {a}, not {k}" for i, (k, a) in enumerate(zip(keys, answers, strict=True), 1) if k != a]
    missed = f"; {', '.join(wrong)}" if wrong else ""
    return f"{right} of {len(keys)} right, {100 * low:.0f} to {100 * high:.0f}% (chance: 25%){missed}"


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lineup", description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT", help="that benchmarks.individuals wrote to")
    parser.add_argument("--arm", default="LoRA-Dash", help="whose drawings (default: %(default)s)")
    parser.add_argument("--answers", nargs="+", metavar="LETTER", help="one for each page, in order")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 on success, 2 with one sentence on stderr otherwise."""
    args = make_parser().parse_args(arguments)
    try:
        if not args.output.is_dir():
            raise InputError(f"there is no folder {args.output}; run benchmarks.individuals first")
        seeds = sorted(int(folder.name) for folder in args.output.iterdir() if folder.name.isdigit())
        cases = [Case.make(seed, args.output, SHOWN) for seed in seeds]
        if args.answers:
            print(judged([candidates(case)[1] for case in cases], args.answers))
            return 0
        folder = args.output / "lineup"
        folder.mkdir(exist_ok=True)
        for number, case in enumerate(cases, 1):
            save_with_palette(page(case, Arm(args.arm, ()), number), folder / f"{number:02d}.png")
    except (InputError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(cases)} pages: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

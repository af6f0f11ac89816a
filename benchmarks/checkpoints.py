"""Is the recommended checkpoint a good one? Asked of individuals of the miniature's world, whose truth is known.

`python -m benchmarks.checkpoints OUT [--individuals 0 1 ...]`

Every individual has five pictures that train_dreambooth.py learns from, and two more (--heldout) that it keeps out of
the training and measures itself on. Then every checkpoint draws the individual in twelve places that none of these
pictures shows, and each drawing is compared with a true render in the same place. The recommendation never saw these.
The regret of a choice is how much less like the truth it is than the best checkpoint of its run. What is there already
is not made again, so a stopped command goes on.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dash_vision.bases.loading import Base, load_base
from dash_vision.files.atomic import write_json
from dash_vision.files.errors import InputError
from dash_vision.measures.choice import recommend
from dash_vision.miniature.world.scenes import render
from dash_vision.runs.evaluation import PREFERENCES, Evaluation
from dash_vision.runs.values import typed
from eval.intervals import student

from .individuals import Arm, Case, Eyes, arm_folder, draw, drawn, to_pixels, train

PICTURES, HELDOUT, PLACES = 5, 2, 12
# Short runs at a high rate, so that ten individuals take half an hour of one core.
FLAGS = (
    "--rank 4 --dash_k 8 --train_batch_size 2 --learning_rate 3e-3 --lr_scheduler constant --max_train_steps 300 "
    "--evaluate_every 50 --num_inference_steps 6"
)


def measure(case: Case, arm: Arm, base: Base, eyes: Eyes) -> dict[str, Any]:
    """An individual's run: what it measured of itself, and how like the truth each of its checkpoints is."""
    record = train(case, arm, 0, None)
    folder = arm_folder(case, arm, 0)
    settings = record["arguments"]
    truth = torch.stack([to_pixels(render(scene)) for scene in case.heldout])
    found = {}
    for one in record["evaluation"]["checkpoints"]:
        adapter = folder / one["adapter"] / "dash_adapter.safetensors" if one["adapter"] else None
        place = folder / "truth" / f"{one['step']:06d}"
        draw(case, case.prompts(), place, base, settings, adapter)
        found[str(one["step"])] = eyes.likeness(drawn(case, place), truth)
    best = max(found, key=lambda step: found[step]["ViT"])
    print(f"{case.seed} {case.kind}: " + ", ".join(f"{s} {v['ViT']:.3f}" for s, v in found.items()), f"best {best}")
    sys.stdout.flush()
    return {"seed": case.seed, "kind": case.kind, "evaluation": record["evaluation"], "truth": found}


Choice = Callable[[Evaluation], int]


def choices() -> dict[str, Choice]:
    """Ways of choosing a checkpoint, by name."""

    def by_rule(prefer: str) -> Choice:
        def choose(evaluation: Evaluation) -> int:
            chosen = recommend(evaluation, prefer)
            assert chosen is not None
            return chosen.step

        return choose

    rules = {f"--prefer {name}": by_rule(name) for name in PREFERENCES}
    return {
        **rules,
        "lowest held-out loss": lambda e: min(e.trained, key=lambda one: one.mean("loss") or 0.0).step,
        "the last": lambda e: e.trained[-1].step,
        "the middle one": lambda e: e.trained[len(e.trained) // 2].step,
    }


def regrets(row: Mapping[str, Any], choose: Choice, measure: str) -> tuple[float, int]:
    """How much less like the truth the chosen checkpoint is than the best one, and which it is."""
    evaluation: Evaluation = typed(Evaluation, row["evaluation"])
    trained = {int(step): values[measure] for step, values in row["truth"].items() if step != "0"}
    step = choose(evaluation)
    return max(trained.values()) - trained[step], step


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Regrets of every way of choosing, means with 95% intervals over individuals by Student's t."""
    lines = ["| choice | regret, ViT | regret, CLIP-I | less than the last, ViT | mean step | mean drift | mean leak |"]
    lines.append(f"| --- |{' ---: |' * 6}")
    evaluations = [typed(Evaluation, row["evaluation"]) for row in rows]
    last = [regrets(row, choices()["the last"], "ViT")[0] for row in rows]
    for name, choose in choices().items():
        cells = [_interval([regrets(row, choose, measure)[0] for row in rows]) for measure in ("ViT", "CLIP-I")]
        mine = [regrets(row, choose, "ViT") for row in rows]
        cells.append(_interval([before - regret for before, (regret, _) in zip(last, mine, strict=True)]))
        steps = [step for _, step in mine]
        chosen = [_checkpoint(e, step) for e, step in zip(evaluations, steps, strict=True)]
        cells.append(f"{statistics.fmean(steps):.0f}")
        cells += [f"{statistics.fmean(one.mean(m) or 0.0 for one in chosen):.3f}" for m in ("drift", "leak")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _checkpoint(evaluation: Evaluation, step: int) -> Any:
    return next(one for one in evaluation.checkpoints if one.step == step)


def _interval(values: Sequence[float]) -> str:
    low, high = student(values)
    return f"{statistics.fmean(values):.3f} ({low:.3f} to {high:.3f})"


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for runs, pictures and checkpoints.json")
    parser.add_argument("--individuals", type=int, nargs="+", default=list(range(10)), help="which (default: 0 to 9)")
    parser.add_argument("--heldout", type=int, default=HELDOUT, help="pictures to keep out (default: %(default)s)")
    parser.add_argument("--flags", default=FLAGS, help="of train_dreambooth.py (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 on success, 2 with one sentence on stderr otherwise."""
    args = make_parser().parse_args(arguments)
    arm = Arm("run", (*shlex.split(args.flags), "--holdout", str(args.heldout)))
    try:
        base = load_base(None)
        base.pipeline.set_progress_bar_config(disable=True)
        eyes, rows = Eyes(), []
        for seed in args.individuals:
            rows.append(measure(Case.make(seed, args.output, PLACES, PICTURES + args.heldout), arm, base, eyes))
            write_json(args.output / "checkpoints.json", {"flags": arm.flags, "individuals": rows})
    except (InputError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is missing", file=sys.stderr)
        return 130
    print(f"\n{table(rows)}\n\n{len(rows)} individuals: {args.output / 'checkpoints.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

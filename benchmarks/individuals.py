"""DreamBooth on individuals of the miniature's world, of which other pictures are known.

`python -m benchmarks.individuals OUT [--plan benchmarks/individuals.yaml]`

For every individual and every arm (a set of trainer flags) train_dreambooth.py is run as a user would run it, on five
instance pictures. Then the trained model draws the individual in places that no instance picture shows, and each
drawing is compared with a held-out render of it in the same place. Two other pictures stand in the drawing's stead for
scale: the base model's answer to the same prompt from the same noise, and a second true render in another pose. "Way"
is how far from the first to the second a drawing comes: 100% is as like the held-out render as another true one.
The model also draws the class in these places, without the rare word. "Leak" is how far these drawings come on the same
way, from the base's own drawings of the class: 0% is a class that is as it was.
What is there already is not made again, so a stopped command goes on, and several may share one OUT, each with other
--individuals. A plan may set arms against each other: effects.py compares them in pairs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import statistics
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

import train_dreambooth
from dash_vision import load_adapter
from dash_vision.bases.loading import Base, load_base
from dash_vision.bases.sampling import Sampling, sample
from dash_vision.core.loading import read_adapters
from dash_vision.drawing.sheet import save_with_palette
from dash_vision.files.atomic import replacing, write_json, write_text
from dash_vision.files.errors import InputError
from dash_vision.measures.encoders import miniature_vit
from dash_vision.miniature.train.data import prompt_ids
from dash_vision.miniature.train.judge import Judge, train_judge
from dash_vision.miniature.train.vae import reconstructed
from dash_vision.miniature.world.scenes import (
    SETTINGS,
    SIZE,
    Scene,
    describe,
    heldout_scenes,
    individual,
    instance_scenes,
    random_pose,
    render,
    write_pictures,
)

from .effects import Comparison, effects, forest_picture, markdown

TOKEN = "sks"
_SHEET = 6  # held-out places shown per individual


@dataclass(frozen=True)
class Arm:
    """A name for the tables, the flags that the trainer gets, the training seeds, and the arm to compare it with."""

    name: str
    flags: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    against: str | None = None

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name:
            raise InputError(f"an arm's name is a folder's name, got {self.name!r}")

    @classmethod
    def parse(cls, text: str) -> Arm:
        """ "NAME=--flag value ..."; raises InputError where there is no name."""
        name, equals, flags = text.partition("=")
        if not equals or not name or "/" in name:
            raise InputError(f'--arm takes NAME=FLAGS (such as LoRA="--dash_k 0"), got {text!r}')
        return cls(name, tuple(shlex.split(flags)))


def read_plan(path: Path) -> tuple[list[Arm], list[Comparison]]:
    """A YAML plan: `common` flags of all; `arms` with a name, flags, and maybe seeds and the arm each is set `against`;
    `pools` of pairs of arms that are compared together, with a name and what they are set against.

    Raises InputError for a file that is no plan, or compares an arm that it does not have.
    """
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
        common = shlex.split(plan.get("common", ""))
        arms = [
            Arm(
                str(one["name"]),
                (*common, *shlex.split(one.get("flags", ""))),
                tuple(int(seed) for seed in one.get("seeds", (0,))),
                one.get("against"),
            )
            for one in plan["arms"]
        ]
        pools = [
            Comparison(str(one["name"]), str(one["against"]), tuple((arm, against) for arm, against in one["pairs"]))
            for one in plan.get("pools", ())
        ]
        if not all(pool.pairs for pool in pools):
            raise ValueError("a pool has no pairs")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path} is no plan ({' '.join(str(error).split())}); it takes YAML with arms, each with a name and flags; "
            "benchmarks/individuals.yaml is one"
        ) from None
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise InputError(f"{path} has two arms of one name; the arms are {', '.join(names)}")
    single = [Comparison(arm.name, arm.against, ((arm.name, arm.against),)) for arm in arms if arm.against]
    comparisons = [*single, *pools]
    for comparison in comparisons:
        for name in (name for pair in comparison.pairs for name in pair):
            if name not in names:
                raise InputError(f"{path} compares {name!r} in {comparison.name}; the arms are {', '.join(names)}")
    return arms, comparisons


@dataclass(frozen=True)
class Case:
    """One individual: its folder, scenes of its instance pictures, held-out ones, and these places in other poses."""

    seed: int
    folder: Path
    seen: list[Scene]
    heldout: list[Scene]
    others: list[Scene]

    @classmethod
    def make(cls, seed: int, output: Path, places: int, pictures: int = 5) -> Case:
        """Individual number `seed` with so many instance pictures; all are written where they are missing. More places
        begin with those of fewer."""
        subject, folder = individual(seed), output / str(seed)
        seen = instance_scenes(subject, pictures, seed)
        heldout = heldout_scenes(subject, seen, places, seed)
        rng = Random(f"other poses {seed}")
        others = [Scene(subject, scene.setting, random_pose(rng)) for scene in heldout]
        if not (folder / "instance").is_dir():
            write_pictures(heldout, folder / "heldout", captions=True)
            write_pictures(seen, folder / "instance")
        return cls(seed, folder, seen, heldout, others)

    @property
    def kind(self) -> str:
        """Its class word."""
        return self.heldout[0].subject.kind

    def prompts(self) -> list[str]:
        """What the trained model is asked for: the rare word, the class and the place; no colour, no mark."""
        return [f"a photo of {describe(scene, token=TOKEN, colour=False)}" for scene in self.heldout]

    def class_prompts(self) -> list[str]:
        """The same without the rare word."""
        return [f"a photo of {describe(scene, colour=False)}" for scene in self.heldout]


def train(case: Case, arm: Arm, seed: int, base: Path | None) -> dict[str, Any]:
    """Run the trainer's main() for one arm and training seed, unless its run is complete; returns its run.json.

    In this process: an interpreter with diffusers takes as long to start as a hundred of the miniature's steps.
    """
    folder = arm_folder(case, arm, seed)
    command = ["--instance_prompt", f"a photo of {TOKEN} {case.kind}", "--seed", str(seed)]
    command += ["--checkpointing_steps", "0", "--validation_prompt", case.prompts()[0]]
    command += ["--pretrained_model_name_or_path", str(base)] if base else []
    command += arm.flags
    told = folder / "command.txt"
    if (folder / "samples.png").exists():  # the trainer's last work but a few numbers
        if told.exists() and told.read_text(encoding="utf-8") != shlex.join(command):
            raise InputError(
                f"{folder} is a run of other flags than arm {arm.name} has now; give the arm another name, or take "
                "another OUT"
            )
        return read_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(told, shlex.join(command))
    terminate = signal.getsignal(signal.SIGTERM)
    with (folder / "log.txt").open("w+", encoding="utf-8") as log:
        with redirect_stdout(log), redirect_stderr(log):
            try:
                folders = ["--instance_data_dir", str(case.folder / "instance"), "--output_dir", str(folder)]
                status = train_dreambooth.main([*folders, *command])
            except SystemExit as refused:  # argparse's answer to a flag that there is not
                status = int(refused.code or 0)
            finally:
                signal.signal(signal.SIGTERM, terminate)
        if status > 128:
            raise KeyboardInterrupt
        if status:
            log.seek(0)
            said = log.read().strip()[-400:]
            raise InputError(f"individual {case.seed}, arm {arm.name}: the trainer failed: {said}")
    return read_run(folder)


def arm_folder(case: Case, arm: Arm, seed: int) -> Path:
    """Where an arm's run of one training seed is."""
    return case.folder / arm.name / f"seed-{seed}"


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a complete run."""
    return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))


def draw(
    case: Case, prompts: Sequence[str], folder: Path, base: Base, settings: dict[str, Any], adapter: Path | None
) -> None:
    """The model's answers to the prompts, as numbered PNG files in `folder`, unless they are all there."""
    files = [folder / f"{i:02d}.png" for i in range(len(prompts))]
    if all(file.exists() for file in files):
        return
    folder.mkdir(parents=True, exist_ok=True)
    size = (base.resolution, base.resolution)
    how = Sampling(settings["num_inference_steps"], settings["guidance_scale"], size, len(prompts))
    networks = base.components()
    parts = read_adapters(adapter) if adapter else ()
    loaded = [load_adapter(networks[name], str(adapter), component=name) for name in parts]
    pictures = sample(base, prompts, case.seed, range(len(prompts)), how, torch.device("cpu"))
    for one in loaded:
        one.remove()
    for file, picture in zip(files, pictures, strict=True):
        with replacing(file) as temporary:
            picture.save(temporary, format="PNG")


def drawn(case: Case, folder: Path) -> Tensor:
    """What `draw` left in `folder`: float32 [N, 3, 64, 64] in -1..1."""
    files = [folder / f"{i:02d}.png" for i in range(len(case.heldout))]
    return torch.stack([to_pixels(Image.open(file)) for file in files])


def to_pixels(picture: Image.Image) -> Tensor:
    """float32 [3, 64, 64] in -1..1."""
    data = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 127.5 - 1


class Eyes:
    """What compares pictures: the miniature's CLIP and ViT, and a judge trained on renders only, if there is one."""

    def __init__(self, judge: Judge | None = None) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        from dash_vision.miniature import clip_path

        self.judge = judge
        self.clip: Any = CLIPModel.from_pretrained(clip_path(), dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(clip_path())
        self.vit: Any = miniature_vit()[0].eval()

    @torch.no_grad()
    def features(self, pictures: Tensor) -> dict[str, Tensor]:
        """Unit vectors [N, D] of pictures [N, 3, 64, 64] in -1..1, by each measure."""
        ids = prompt_ids(self.tokenizer, [""])
        found = {"CLIP-I": self.clip(input_ids=ids, pixel_values=pictures).image_embeds, "ViT": self.vit(pictures)}
        if self.judge:
            found["judge"] = self.judge.features(pictures)
        return {name: F.normalize(vectors, dim=1) for name, vectors in found.items()}

    def likeness(self, pictures: Tensor, truth: Tensor) -> dict[str, float]:
        """Mean cosine of each picture with the true one of the same place, by each measure."""
        a, b = self.features(pictures), self.features(truth)
        return {name: float((a[name] * b[name]).sum(1).mean()) for name in a}

    def place_kept(self, pictures: Tensor, scenes: Sequence[Scene]) -> float:
        """The share of pictures that show the right place: CLIP's choice among captions of the class in all places."""
        settings = list(SETTINGS)
        (kind,) = {scene.subject.kind for scene in scenes}
        ids = prompt_ids(self.tokenizer, [f"a photo of a {kind} {setting}" for setting in settings])
        with torch.no_grad():
            texts = self.clip(input_ids=ids, pixel_values=torch.zeros(1, 3, 64, 64)).text_embeds
        chosen = (self.features(pictures)["CLIP-I"] @ texts.T / texts.norm(dim=1)).argmax(dim=1).tolist()
        return statistics.fmean(settings[i] == scene.setting for i, scene in zip(chosen, scenes, strict=True))


def way(low: float, value: float, high: float) -> float:
    """Where `value` lies between `low` (0) and `high` (1)."""
    return (value - low) / (high - low)


def make(case: Case, arm: Arm, seed: int, base: Base, weights: Path | None) -> None:
    """Train one arm on one individual, and draw with it and with the base, unless that is done."""
    settings = train(case, arm, seed, weights)["arguments"]
    folder = arm_folder(case, arm, seed)
    of_base, adapter = base_folder(case, settings), folder / "dash_adapter.safetensors"
    for prompts, names in ((case.prompts(), ("", "pictures")), (case.class_prompts(), ("class", "class"))):
        draw(case, prompts, of_base / names[0], base, settings, None)
        draw(case, prompts, folder / names[1], base, settings, adapter)


def frame(case: Case, base: Base, eyes: Eyes) -> dict[str, Any]:
    """An individual's row before any arm: what another true render scores, as it is and through the VAE."""
    truth, others = (torch.stack([to_pixels(render(s)) for s in scenes]) for scenes in (case.heldout, case.others))
    return {
        "seed": case.seed,
        "kind": case.kind,
        "another render": eyes.likeness(others, truth),
        "through the VAE": eyes.likeness(reconstructed(base.pipeline.vae, others), truth),
        "place": eyes.place_kept(truth, case.heldout),
        "arms": {},
    }


def score(case: Case, arm: Arm, seed: int, row: dict[str, Any], eyes: Eyes) -> dict[str, Any]:
    """What the drawings of one arm are like; row: the individual's."""
    folder = arm_folder(case, arm, seed)
    run = read_run(folder)
    settings = run["arguments"]
    truth = torch.stack([to_pixels(render(scene)) for scene in case.heldout])
    # The base answers with the arm's own sampler settings: they may differ between arms.
    floor = eyes.likeness(drawn(case, base_folder(case, settings)), truth)
    pictures = drawn(case, folder / "pictures")
    found, ceiling = eyes.likeness(pictures, truth), row["another render"]
    of_class, class_floor = (
        eyes.likeness(drawn(case, place / "class"), truth) for place in (folder, base_folder(case, settings))
    )
    result = {
        "likeness": found,
        "base": floor,
        "way": {name: way(floor[name], found[name], ceiling[name]) for name in found},
        "leak": {name: way(class_floor[name], of_class[name], ceiling[name]) for name in found},
        "way of the VAE": {name: way(floor[name], row["through the VAE"][name], ceiling[name]) for name in found},
        "place": eyes.place_kept(pictures, case.heldout),
        "seconds": run["seconds"],
        "trainable": run["trainable_parameters"],
    }
    shown = ", ".join(f"{name} {100 * w:.0f}%" for name, w in result["way"].items())
    leaked = ", ".join(f"{name} {100 * w:.0f}%" for name, w in result["leak"].items())
    place = f"place right {100 * result['place']:.0f}%"
    print(f"{case.seed} {case.kind}, {arm.name}, seed {seed}: way {shown}; leak {leaked}; {place}", flush=True)
    return result


def base_folder(case: Case, settings: dict[str, Any]) -> Path:
    """Where the base's answers under a run's sampler settings are."""
    return case.folder / f"base-{settings['num_inference_steps']}-{settings['guidance_scale']:g}"


def summary(rows: Sequence[dict[str, Any]], arms: Sequence[Arm], seed: int = 0) -> str:
    """The table over all individuals: means with 95% bootstrap intervals over individuals."""
    measures = list(rows[0]["another render"])
    ways = [(kind, name) for kind in ("way", "leak") for name in measures]
    columns = [*(f"{kind}, {name}" for kind, name in ways), "place right", "numbers trained", "minutes a run"]
    lines = [f"| arm | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for arm in arms:
        found = [list(row["arms"][arm.name].values()) for row in rows]
        cells = [
            _percent([statistics.fmean(one[kind][name] for one in runs) for runs in found], seed) for kind, name in ways
        ]
        cells.append(_percent([statistics.fmean(one["place"] for one in runs) for runs in found], seed))
        minutes = statistics.fmean(one["seconds"] / 60 for runs in found for one in runs)
        lines.append(f"| {arm.name} | {' | '.join(cells)} | {found[0][0]['trainable']:,} | {minutes:.1f} |")
    limit = [next(iter(row["arms"][arms[0].name].values()))["way of the VAE"] for row in rows]
    cells = [_percent([one[name] for one in limit], seed) for name in measures] + [""] * len(measures)
    cells.append(_percent([row["place"] for row in rows], seed))
    lines.append(f"| a true render | {' | '.join(cells)} | | |")
    return "\n".join(lines)


def _percent(values: Sequence[float], seed: int) -> str:
    data = torch.tensor(values, dtype=torch.float64)
    draws = torch.randint(len(data), (2000, len(data)), generator=torch.Generator().manual_seed(seed))
    low, high = torch.quantile(data[draws].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return f"{100 * data.mean():.0f}% ({100 * low:.0f} to {100 * high:.0f})"


def sheet(cases: Sequence[Case], arms: Sequence[Arm], file: Path, zoom: int = 2) -> None:
    """Per individual: two instance pictures, then held-out places in rows: true render, base, every arm."""
    from dash_vision.miniature.world.scenes import contact_sheet

    rows: list[Image.Image] = []
    shown = min(_SHEET, len(cases[0].heldout))
    blank = Image.new("RGB", (64, 64), "white")
    for case in cases:
        folders = [arm_folder(case, arm, arm.seeds[0]) for arm in arms]
        rows_of = [base_folder(case, read_run(folders[0])["arguments"]), *(f / "pictures" for f in folders)]
        lines = [[render(scene) for scene in case.heldout[:shown]]]
        lines += [[Image.open(folder / f"{i:02d}.png") for i in range(shown)] for folder in rows_of]
        for i, line in enumerate(lines):
            rows += [render(case.seen[i]) if i < len(case.seen) else blank, *line]
    save_with_palette(contact_sheet(rows, shown + 1, zoom), file)


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.individuals", description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for runs, pictures and scores.json")
    parser.add_argument(
        "--work", type=Path, help="the miniature build's folder: a judge is trained on its renders and measures too"
    )
    parser.add_argument("--individuals", type=int, nargs="+", default=list(range(10)), help="which (default: 0 to 9)")
    arms_from = parser.add_mutually_exclusive_group()
    arms_from.add_argument(
        "--arm", action="append", metavar="NAME=FLAGS", help="repeatable (default: LoRA-Dash, no flags)"
    )
    arms_from.add_argument("--plan", type=Path, metavar="FILE", help="arms from a YAML file instead, with comparisons")
    parser.add_argument("--base", type=Path, help="miniature-flow, or a pipeline folder, instead of miniature")
    parser.add_argument("--places", type=int, default=12, help="held-out places an individual (default: 12)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 on success, 2 with one sentence on stderr otherwise."""
    args = make_parser().parse_args(arguments)
    try:
        comparisons: list[Comparison] = []
        if args.plan:
            arms, comparisons = read_plan(args.plan)
        else:
            arms = [Arm.parse(text) for text in args.arm or ["LoRA-Dash="]]
        cases = [Case.make(seed, args.output, args.places) for seed in args.individuals]
        base = load_base(str(args.base) if args.base else None)
        if base.resolution != SIZE:
            raise InputError(
                f"--base {args.base} draws {base.resolution} pixels unless it is told otherwise, and individuals are "
                f"rendered with {SIZE}; give a base of {SIZE} pixels"
            )
        base.pipeline.set_progress_bar_config(disable=True)
        # Arm by arm, so that a stopped command leaves whole comparisons.
        todo = [(case, arm, seed) for arm in arms for seed in arm.seeds for case in cases]
        for number, (case, arm, seed) in enumerate(todo, 1):
            make(case, arm, seed, base, args.base)
            print(f"[{number}/{len(todo)}] {case.seed} {case.kind}, {arm.name}, seed {seed}: drawn", flush=True)
        eyes = Eyes(train_judge(args.work) if args.work else None)
        rows = [frame(case, base, eyes) for case in cases]
        for case, row in zip(cases, rows, strict=True):
            for arm in arms:
                row["arms"][arm.name] = {str(seed): score(case, arm, seed, row, eyes) for seed in arm.seeds}
        found = effects(rows, comparisons)
    except (InputError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is missing", file=sys.stderr)
        return 130
    write_json(args.output / "scores.json", {"arms": {arm.name: arm.flags for arm in arms}, "individuals": rows})
    sheet(cases, arms, args.output / "sheet.png")
    print(f"\n{summary(rows, arms)}\n")
    if found:
        print(f"{markdown(found)}\n")
        forest_picture(found, len(rows)).save(args.output / "effects.png", optimize=True)
    print(f"{len(rows)} individuals: {args.output / 'scores.json'} and pictures beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""LoRA-Dash, LoRA and others on pretrained weights, every arm with the best of the same learning rates.

`python -m benchmarks.pretrained RECORDS --model_name_or_path FOLDER --data_dir FOLDER [--plan FILE]`

For every arm, each learning rate of the plan (or of the arm) is tried with one seed, and the rate that is best on dev
is run with the other seeds. The plan's script (examples/glue.py) does each run in a process of its own.
RECORDS/NAME.jsonl keeps one line a run: its command and its result. A run that is there already is not made again, so a
stopped command resumes.
`--table` only reads the records: it prints the tables and draws RECORDS/NAME.png (differences) and NAME-rates.png.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from dash_vision.drawing.forest import Estimate, draw_forest
from dash_vision.drawing.plot import Panel, Series, draw
from dash_vision.files.errors import InputError
from eval.intervals import student

from .effects import Effect

# By its name in the tables: where the script's result has it.
MEASURES = {
    "dev loss": "dev_loss",
    "dev accuracy": "dev_accuracy",
    "test loss": "test_loss",
    "test accuracy": "test_accuracy",
}


@dataclass(frozen=True)
class Arm:
    """A name for the tables, the flags that the script gets, and the arm to compare it with. shifts: the learning rate
    of the singular-value shifts as a multiple of the others', where it is another one. rates: the learning rates that
    it chooses from, the plan's unless it names its own."""

    name: str
    flags: str
    rates: tuple[float, ...]
    against: str | None = None
    shifts: float | None = None


@dataclass(frozen=True)
class Plan:
    """What is run: see pretrained.yaml."""

    script: str
    common: str
    choice_seed: int
    seeds: list[int]
    arms: list[Arm]

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Raises InputError for a file that is no plan."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            arms = [Arm(**{**arm, "rates": tuple(arm.get("rates", content["rates"]))}) for arm in content["arms"]]
            del content["rates"]
            plan = cls(**{**content, "arms": arms})
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no plan ({error}); benchmarks/pretrained.yaml is one") from None
        names = {arm.name for arm in plan.arms}
        for arm in plan.arms:
            if arm.against not in (None, *names):
                raise InputError(f"{path}: {arm.name} is set against {arm.against!r}; the arms are {', '.join(names)}")
        return plan

    def command(self, arm: Arm, rate: float, seed: int) -> str:
        """The flags of one run, as they are recorded."""
        own = f"--dash_lr {arm.shifts * rate:g}" if arm.shifts is not None else ""
        return " ".join(f"{self.common} {arm.flags} {own} --learning_rate {rate:g} --seed {seed}".split())


class Records:
    """One line of JSON a run, in the order in which the runs were made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.results: dict[str, dict[str, Any]] = {}
        for line in lines:
            entry = json.loads(line)
            self.results[entry["command"]] = entry["result"]

    def add(self, command: str, result: dict[str, Any]) -> None:
        """Append a run."""
        self.results[command] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"command": command, "result": result}) + "\n")


def chosen(plan: Plan, arm: Arm, records: Records) -> float | None:
    """The learning rate whose run of the choosing seed has the lowest loss on dev; None before all were run."""
    losses = {}
    for rate in arm.rates:
        result = records.results.get(plan.command(arm, rate, plan.choice_seed))
        if result is None:
            return None
        losses[rate] = result["dev_loss"][-1]
    return min(losses, key=lambda rate: losses[rate])


def missing(plan: Plan, records: Records) -> Iterator[tuple[str, str]]:
    """(what, command) of every run that is to be made, in order: an arm's choice of the rate comes before its seeds."""
    for arm in plan.arms:
        for rate in arm.rates:
            if (command := plan.command(arm, rate, plan.choice_seed)) not in records.results:
                yield f"{arm.name}, rate {rate:g}", command
        best = chosen(plan, arm, records)
        assert best is not None, "every rate was just run"
        for seed in plan.seeds:
            if (command := plan.command(arm, best, seed)) not in records.results:
                yield f"{arm.name}, seed {seed} at its best rate {best:g}", command


def run(plan: Plan, command: str, places: Sequence[str]) -> dict[str, Any]:
    """The script's result.json for one command. Raises InputError with the end of its output when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, plan.script, *shlex.split(command), *places, "--output_dir", folder]
        process = subprocess.run(words, capture_output=True, text=True, check=False)
        if process.returncode:
            raise InputError(f"{plan.script} {command} failed: {(process.stderr or process.stdout).strip()[-600:]}")
        result: dict[str, Any] = json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))
    kept = ("parameters", "steps", "dev_accuracy", "dev_loss", "test_accuracy", "test_loss")
    return {key: result[key] for key in kept}


def main(arguments: list[str] | None = None) -> int:
    """Make the runs that are missing, then print the tables."""
    args = make_parser().parse_args(arguments)
    try:
        plan = Plan.read(args.plan)
        records = Records(args.records / f"{args.name or args.plan.stem}.jsonl")
        places = ["--model_name_or_path", str(args.model_name_or_path), "--data_dir", str(args.data_dir)]
        for what, command in () if args.table else missing(plan, records):
            records.add(command, run(plan, command, places))
            print(f"{what}: {outcome(records.results[command])}", flush=True)
        publish(plan, records)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# -- tables and picture


def value(result: dict[str, Any], measure: str) -> float:
    """A measure at the end of a run: a loss, or an accuracy in percent."""
    measured = result[MEASURES[measure]]
    return float(measured[-1] if isinstance(measured, list) else measured)


def outcome(result: dict[str, Any]) -> str:
    """One run in words."""
    return ", ".join(f"{measure} {value(result, measure):.3f}" for measure in MEASURES)


def finished(plan: Plan, records: Records) -> list[Arm]:
    """The arms of which every run was made."""
    rates = {arm.name: chosen(plan, arm, records) for arm in plan.arms}
    return [
        arm
        for arm in plan.arms
        if (rate := rates[arm.name]) is not None
        and all(plan.command(arm, rate, seed) in records.results for seed in plan.seeds)
    ]


def by_seed(plan: Plan, arm: Arm, records: Records, measure: str) -> list[float]:
    """An arm's values at its chosen rate, one a seed."""
    rate = chosen(plan, arm, records)
    assert rate is not None, f"{arm.name} is not finished"
    return [value(records.results[plan.command(arm, rate, seed)], measure) for seed in plan.seeds]


def _digits(measure: str) -> int:
    return 3 if "loss" in measure else 1


def results_table(plan: Plan, arms: Sequence[Arm], records: Records) -> str:
    """Means and standard deviations over the seeds."""
    lines = [f"| arm | parameters | rate | {' | '.join(MEASURES)} |"]
    lines += [f"| --- | ---: | ---: |{' ---: |' * len(MEASURES)}"]
    for arm in arms:
        rate = chosen(plan, arm, records)
        assert rate is not None, f"{arm.name} is not finished"
        size = records.results[plan.command(arm, rate, plan.seeds[0])]["parameters"]
        cells = []
        for measure in MEASURES:
            values, digits = by_seed(plan, arm, records, measure), _digits(measure)
            cells.append(f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}")
        lines.append(f"| {arm.name} | {size:,} | {rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(plan: Plan, arms: Sequence[Arm], records: Records) -> list[Effect]:
    """Arms less those that they are set against by each measure, paired by seed, with 95% intervals (Student's t over
    seeds)."""
    found = []
    named = {arm.name: arm for arm in arms}
    for arm in arms:
        if arm.against is None or arm.against not in named:
            continue
        outcomes = {}
        for measure in MEASURES:
            others = by_seed(plan, named[arm.against], records, measure)
            gaps = [a - b for a, b in zip(by_seed(plan, arm, records, measure), others, strict=True)]
            outcomes[measure] = Estimate(statistics.fmean(gaps), *student(gaps), gaps)
        found.append(Effect(arm.name, arm.against, len(plan.seeds), outcomes))
    return found


def differences_table(found: Sequence[Effect]) -> str:
    """The differences with their intervals."""
    lines = [f"| arm | less | {' | '.join(MEASURES)} |", f"| --- | --- |{' ---: |' * len(MEASURES)}"]
    for effect in found:
        cells = []
        for measure, e in effect.outcomes.items():
            digits = _digits(measure)
            cells.append(f"{e.mean:+.{digits}f} ({e.low:+.{digits}f} to {e.high:+.{digits}f})")
        lines.append(f"| {effect.arm} | {effect.against} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences_picture(found: Sequence[Effect], seeds: int) -> Image.Image:
    """The differences on the test set as a forest plot, grouped by what the arms are set against."""
    groups: dict[str, list[tuple[str, list[Estimate]]]] = {}
    shown = ("test loss", "test accuracy")
    for effect in found:
        of_test = [effect.outcomes[measure] for measure in shown]
        groups.setdefault(f"less {effect.against}", []).append((effect.arm, of_test))
    note = (
        f"Small dots: the {seeds} seeds. Large dots and bars: mean and 95% interval (Student's t over seeds). An arm "
        "is better than the other where its loss lies left of the line, and its accuracy right of it."
    )
    return draw_forest([m if "loss" in m else f"{m}, points" for m in shown], groups, note)


def rates_panel(plan: Plan, arms: Sequence[Arm], records: Records, measure: str) -> Panel:
    """A measure against the learning rate: one line an arm, from the runs of the choosing seed."""
    series = []
    for colour, arm in enumerate(arm for arm in arms if len(arm.rates) > 1):
        tried = [(rate, records.results[plan.command(arm, rate, plan.choice_seed)]) for rate in arm.rates]
        points = [(math.log10(rate), value(result, measure)) for rate, result in tried]
        series.append(Series(arm.name, points, colour, marker="dot"))
    return Panel(f"{measure} by learning rate", "log10 of the learning rate", measure, series)


def publish(plan: Plan, records: Records) -> None:
    """Print both tables of the finished arms, and draw the differences and the rates."""
    arms = finished(plan, records)
    if not arms:
        raise InputError(f"{records.path} has no finished arm yet; run the command without --table first")
    found = differences(plan, arms, records)
    print(results_table(plan, arms, records), differences_table(found), sep="\n\n")
    rates = records.path.with_name(f"{records.path.stem}-rates.png")
    draw([rates_panel(plan, arms, records, measure) for measure in ("dev loss", "dev accuracy")]).save(rates)
    print(f"\n{rates}")
    if found:
        picture = records.path.with_suffix(".png")
        differences_picture(found, len(plan.seeds)).save(picture)
        print(picture)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.pretrained", description=__doc__.partition("\n")[0])
    parser.add_argument("records", type=Path, metavar="RECORDS", help="folder of the records")
    parser.add_argument("--model_name_or_path", help="folder of the pretrained model")
    parser.add_argument("--data_dir", type=Path, help="folder with train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--plan", type=Path, default=Path("benchmarks/pretrained.yaml"), help="the arms (YAML)")
    parser.add_argument("--name", help="name of the record's file; the default is the plan's name")
    parser.add_argument("--table", action="store_true", help="make no run: print and draw what was recorded")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Do the directions that LoRA changes on a pretrained model predict those of full fine-tuning?

`python -m benchmarks.directions RECORD --runs FOLDER... --full FOLDER... [--shuffled FOLDER...] [--base FOLDER]`

RUNS are output folders of examples/glue.py or examples/commonsense.py with LoRA or LoRA-Dash, FULL of the same with
`--method full`, SHUFFLED of the same on data whose labels were shuffled. Every run is set against every fully tuned
model, and these against each other: recall and accuracy as in the paper, once by change rate and once by the
projection |u^T dW v| alone, without the division by the singular value. Random updates of the same rank stand beside
them. RECORD is the .json file to write. `python -m benchmarks.directions RECORD --table` prints its tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dash_vision.core.analysis import PREDICTED, Overlap, null_pairs, overlap, update_rates
from dash_vision.core.directions import Directions, singular_directions
from dash_vision.files.errors import InputError
from eval.directions.sources import frozen_weights, read_source, read_truth
from eval.directions.trainer import TrainerRun
from eval.directions.updates import learned, low_rank
from eval.intervals import student

MEASURES = ("rate", "projection")
EPS = 1e-6


def analyse(runs: Sequence[Path], truths: Mapping[str, Sequence[Path]], base: str | None, draws: int) -> dict[str, Any]:
    """The record: for every pair of updates, and for pairs of random ones, the overlap in each layer. Raises
    InputError. truths: kind of full fine-tuning -> folders."""
    sources = []
    for path in runs:
        run, source = read_source(path)
        if not isinstance(run, TrainerRun):
            raise InputError(f"{path} is of no transformers' Trainer; give output folders of the examples")
        assert source.state is not None
        sources.append((run, source, run.kept_steps(source.state)))
    first, state = sources[0][0], sources[0][0].state
    frozen = frozen_weights(first.load_base(base), state, runs[0])
    full = [(kind, read_truth(path, first, sources[0][1])[1]) for kind, paths in truths.items() for path in paths]
    record: dict[str, Any] = {"layers": list(frozen), "draws": draws, "rows": [], "chance": {}, "share": {}}
    rows: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    ranks = [*dict.fromkeys(source.state.rank for _, source, _ in sources if source.state), None]
    for number, (module, W) in enumerate(frozen.items()):
        directions = singular_directions(W)
        true = {
            (kind, source.name): _rates(directions, learned(source, module, W, directions)) for kind, source in full
        }
        for _, source, steps in sources:
            assert source.state is not None
            for step, tensors in steps.items():
                own = _rates(directions, low_rank(tensors, module, source.state.scaling))
                for (kind, name), other in true.items():
                    _add(rows, (source.name, source.state.rank, step, kind, name), own, other, directions)
                if step == max(steps):
                    _append(record["share"], f"rank {source.state.rank}", _share(own))
        for (kind, _), rates in true.items():
            _append(record["share"], f"full, {kind} labels", _share(rates))
        for (first_kind, name), (kind, another) in itertools.combinations(true, 2):
            if first_kind == "true":
                pair = true[first_kind, name], true[kind, another]
                _add(rows, (name, None, None, kind, another), *pair, directions)
        for rank in ranks:
            drawn = list(null_pairs(directions, (rank, None), draws, number, EPS))
            _append(record["share"], f"random, rank {rank or 'full'}", statistics.fmean(_share(r) for r, _ in drawn))
            for measure in MEASURES:
                overlaps = [overlap(*(_measured(r, directions, measure) for r in pair)) for pair in drawn]
                mean = [statistics.fmean(values) for values in zip(*overlaps, strict=True)]
                _append(record["chance"], f"{rank} {measure}", [round(value, 3) for value in mean])
    for (source, rank, step, kind, truth), found in rows.items():
        about = {"source": source, "rank": rank, "step": step, "labels": kind, "truth": truth}
        record["rows"].append(about | found)
    return record


def _rates(directions: Directions, update: Any) -> Tensor:
    return update_rates(directions, update, EPS)


def _measured(rates: Tensor, directions: Directions, measure: str) -> Tensor:
    return rates if measure == "rate" else rates * (directions.sigma + EPS)


def _share(rates: Tensor) -> float:
    """Which share of a layer's change rates its largest ones have."""
    return round((rates.sort(descending=True).values[:PREDICTED].sum() / rates.sum()).item(), 4)


def _add(rows: dict[tuple[Any, ...], Any], key: tuple[Any, ...], own: Tensor, true: Tensor, d: Directions) -> None:
    for measure in MEASURES:
        found = overlap(_measured(own, d, measure), _measured(true, d, measure))
        _append(rows.setdefault(key, {}), measure, list(found))


def _append(lists: dict[str, list[Any]], key: str, value: Any) -> None:
    lists.setdefault(key, []).append(value)


# -- tables


def against(record: dict[str, Any], rows: Sequence[dict[str, Any]], measure: str, layers: Iterable[int]) -> list[str]:
    """Cells of a table: recall, that of chance, and accuracy, that of chance; and the differences with 95% intervals
    over layers (Student's t), each layer's the mean over the pairs."""
    layers, cells = list(layers), []
    chance = record["chance"][f"{rows[0]['rank']} {measure}"]
    for which in range(len(Overlap._fields)):
        own = [statistics.fmean(row[measure][layer][which] for row in rows) for layer in layers]
        null = [chance[layer][which] for layer in layers]
        gaps = [a - b for a, b in zip(own, null, strict=True)]
        low, high = student(gaps)
        cells.append(f"{statistics.fmean(own):.2f}")
        cells.append(f"{statistics.fmean(null):.2f}")
        cells.append(f"{statistics.fmean(gaps):+.2f} ({low:+.2f} to {high:+.2f})")
    return cells


def groups(record: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(name, rows) of what the tables set against chance: full fine-tunings, then LoRA by rank and step."""
    rows = record["rows"]
    last = max(row["step"] for row in rows if row["step"] is not None)
    for kind in dict.fromkeys(row["labels"] for row in rows):
        words = f"{kind} labels"
        for rank in sorted({row["rank"] for row in rows if row["rank"] is not None}):
            for step in sorted({row["step"] for row in rows if row["rank"] == rank}):
                if step == last or kind == "true":
                    chosen = [r for r in rows if (r["rank"], r["step"], r["labels"]) == (rank, step, kind)]
                    yield f"LoRA rank {rank}, step {step}, against full fine-tuning on {words}", chosen
        both = [r for r in rows if r["rank"] is None and r["labels"] == kind]
        if both:
            yield f"full fine-tuning against another on {words}", both


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


HEAD = ("recall", "chance", "difference", "accuracy", "chance", "difference")


def tables(record: dict[str, Any]) -> str:
    """All tables of a record."""
    every = range(len(record["layers"]))
    parts = []
    for measure in MEASURES:
        rows = [(name, str(len(chosen)), *against(record, chosen, measure, every)) for name, chosen in groups(record)]
        parts.append(f"By {measure}:\n\n" + _table(("", "pairs", *HEAD), rows))
    last = max(row["step"] for row in record["rows"] if row["step"] is not None)
    for what, name_of in (("projection", _projection), ("block", _block)):
        rows = []
        for name in dict.fromkeys(map(name_of, record["layers"])):
            layers = [i for i, layer in enumerate(record["layers"]) if name_of(layer) == name]
            for rank in sorted({row["rank"] for row in record["rows"] if row["rank"] is not None}):
                chosen = [r for r in record["rows"] if (r["rank"], r["step"], r["labels"]) == (rank, last, "true")]
                rows.append((f"{name}, rank {rank}", *against(record, chosen, "rate", layers)))
        parts.append(f"By change rate, step {last}, for each {what}:\n\n" + _table(("", *HEAD), rows))
    shares = [(name, f"{100 * statistics.fmean(values):.1f} %") for name, values in record["share"].items()]
    parts.append(
        f"Share of a layer's change rates in its {PREDICTED} largest:\n\n" + _table(("update", "share"), shares)
    )
    return "\n\n".join(parts)


def _projection(layer: str) -> str:
    return ".".join(word for word in layer.split(".")[-2:] if word not in ("self", "self_attn", "mlp"))


def _block(layer: str) -> str:
    return next((f"block {word}" for word in layer.split(".") if word.isdigit()), "others")


def main(arguments: list[str] | None = None) -> int:
    """Make the record, or print it."""
    args = make_parser().parse_args(arguments)
    say: Callable[[str], None] = print
    try:
        if not args.table:
            if not args.runs or not args.full:
                raise InputError("--runs and --full are needed; with --table a record that is there is printed")
            args.record.parent.mkdir(parents=True, exist_ok=True)
            truths = {"true": args.full, "shuffled": args.shuffled}
            record = analyse(args.runs, truths, args.base, args.draws)
            args.record.write_text(json.dumps(record) + "\n", encoding="utf-8")
        try:
            record = json.loads(args.record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{args.record} cannot be read ({error}); make it without --table") from None
        say(tables(record))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.directions", description=__doc__.partition("\n")[0])
    parser.add_argument("record", type=Path, metavar="RECORD", help="the .json file")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], metavar="FOLDER", help="runs of LoRA or LoRA-Dash")
    parser.add_argument("--full", type=Path, nargs="*", default=[], metavar="FOLDER", help="full fine-tunings")
    parser.add_argument("--shuffled", type=Path, nargs="*", default=[], metavar="FOLDER", help="on shuffled labels")
    parser.add_argument("--base", help="where the pretrained model is now")
    parser.add_argument("--draws", type=int, default=50, help="pairs of random updates a layer (default: 50)")
    parser.add_argument("--table", action="store_true", help="make no record: print the one that is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())

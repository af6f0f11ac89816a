"""Fine-tune a BERT-like model on a task of GLUE with LoRA-Dash, LoRA, all weights, or a method of PEFT's.

    python examples/glue.py --model_name_or_path FOLDER --task sst2 --data_dir FOLDER --output_dir out --method dash

The data come from FOLDER/train.tsv, dev.tsv and test.tsv (a header, the text columns, `label`), or, without --data_dir,
from the hub through `datasets`. The epoch is chosen on dev; the result on test is written to OUTPUT_DIR/result.json.
All of transformers' TrainingArguments are flags too.
"""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from methods import MethodArguments, apply
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dash_vision import InputError
from dash_vision.integrations.transformers import dash_optimizer

SPLITS = ("train", "dev", "test")


@dataclass
class TaskArguments:
    """What is learned, from which data."""

    model_name_or_path: str = field(metadata={"help": "hub id or local folder"})
    task: str = field(default="sst2", metadata={"help": "the task's name, for the hub and for the result"})
    data_dir: str | None = field(default=None, metadata={"help": "folder with train.tsv, dev.tsv and test.tsv"})
    max_length: int = field(default=128, metadata={"help": "tokens that are read of a text"})
    limit: int | None = field(default=None, metadata={"help": "use so many texts of the training set"})
    dev_limit: int | None = field(default=None, metadata={"help": "use so many texts of dev"})
    test_limit: int | None = field(default=None, metadata={"help": "use so many texts of test"})


def read_rows(folder: Path, split: str) -> list[dict[str, str]]:
    """The rows of a .tsv file. Raises InputError when it cannot be read or has no labels."""
    path = folder / f"{split}.tsv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a folder with {', '.join(SPLITS)} as .tsv") from None
    if not rows or any(not str(row.get("label") or "").isdigit() or None in row for row in rows):
        raise InputError(f"{path} is no table with a column `label` of whole numbers; its first line names the columns")
    return rows


def load_data(options: TaskArguments) -> dict[str, list[dict[str, Any]]]:
    """Rows by split. GLUE's own test sets have no labels: there validation is the test set, a tenth of train is dev."""
    if options.data_dir:
        data: dict[str, Any] = {split: read_rows(Path(options.data_dir), split) for split in SPLITS}
    else:
        from datasets import load_dataset

        hub = load_dataset("nyu-mll/glue", options.task)
        parts = hub["train"].train_test_split(0.1, seed=0)
        data = {"train": list(parts["train"]), "dev": list(parts["test"]), "test": list(hub["validation"])}
    limits = {"train": options.limit, "dev": options.dev_limit, "test": options.test_limit}
    return {split: rows[: limits[split]] for split, rows in data.items()}


def encode(rows: list[dict[str, Any]], tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """Token ids and labels, the shortest first, so that a batch needs little padding; a row has one text, or two."""
    texts = [key for key, value in rows[0].items() if isinstance(value, str) and key not in ("label", "idx")]
    encoded = tokenizer(*([row[key] for row in rows] for key in texts[:2]), truncation=True, max_length=length)
    examples = [
        {**{key: values[i] for key, values in encoded.items()}, "labels": int(row["label"])}
        for i, row in enumerate(rows)
    ]
    return sorted(examples, key=lambda example: len(example["input_ids"]))  # the Trainer shuffles what it trains on


def accuracy(prediction: Any) -> dict[str, float]:
    """In percent."""
    return {"accuracy": 100 * float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def make_parser() -> HfArgumentParser:
    """The command line."""
    parser = HfArgumentParser((TaskArguments, MethodArguments, TrainingArguments), description=__doc__)
    parser.set_defaults(eval_strategy="epoch", save_strategy="epoch", save_total_limit=2, load_best_model_at_end=True)
    parser.set_defaults(metric_for_best_model="accuracy", report_to="none", learning_rate=5e-4)
    return parser


def main() -> None:
    """Train, choose, test."""
    task, method, arguments = make_parser().parse_args_into_dataclasses()
    set_seed(arguments.seed)
    data = load_data(task)
    tokenizer = AutoTokenizer.from_pretrained(task.model_name_or_path)
    labels = 1 + max(int(row["label"]) for row in data["train"])
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        task.model_name_or_path, num_labels=labels, output_loading_info=True
    )
    if model.config.pad_token_id is None:  # a decoder reads its answer off the last token that is none
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    head = sorted({key.rpartition(".")[0] for key in loaded["missing_keys"]})  # what the checkpoint does not have
    model, callbacks = apply(model, method, arguments.seed, head)
    trainer = Trainer(
        model,
        arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encode(data["train"], tokenizer, task.max_length),
        eval_dataset=encode(data["dev"], tokenizer, task.max_length),
        compute_metrics=accuracy,
        callbacks=callbacks,
        optimizers=(dash_optimizer(model, arguments, method.dash_lr) if method.dash_lr else None, None),
    )
    trainer.train()
    if not any("eval_accuracy" in entry for entry in trainer.state.log_history):  # by --eval_strategy no
        trainer.evaluate()
    test = trainer.predict(encode(data["test"], tokenizer, task.max_length)).metrics
    evaluations = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    history = [entry["eval_accuracy"] for entry in evaluations]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = {"task": asdict(task), "method": asdict(method), "seed": arguments.seed, "parameters": trained}
    result |= {"learning_rate": arguments.learning_rate, "steps": trainer.state.global_step}
    result |= {"dev_accuracy": history, "dev_loss": [entry["eval_loss"] for entry in evaluations]}
    result |= {"test_accuracy": test["test_accuracy"], "test_loss": test["test_loss"]}
    Path(arguments.output_dir, "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    accuracies = f"{max(history):.2f} % on dev, {test['test_accuracy']:.2f} % on test"
    print(f"{method.method}: {accuracies}, {trained:,} trained parameters")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")

"""Fine-tune a language model on commonsense reasoning as the LoRA-Dash paper does, with LoRA-Dash, LoRA and others.

    python examples/commonsense.py --model_name_or_path FOLDER --data_dir FOLDER --sets boolq ARC-Easy --output_dir out

FOLDER/SET/train.json and test.json are lists of {"instruction", "input", "output", "answer"}, where the instruction
ends with "Answer format: answer1/answer2/...". The loss is on the answer alone. Each test question is scored twice: by
the first option that the generated text names, as the paper does, and by the likelihood of the options. With --dev N,
the last N training questions of every set are held out, and loss and accuracy on them are reported too. Results are
written to OUTPUT_DIR/result.json. All of transformers' TrainingArguments are flags too.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from methods import MethodArguments, apply
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dash_vision import InputError
from dash_vision.bases.quantization import QUANTIZATIONS, configuration
from dash_vision.integrations.transformers import dash_optimizer

KEYS = ("instruction", "input", "output", "answer")
IGNORED = -100  # what cross entropy leaves out


@dataclass
class TaskArguments:
    """What is learned, from which data."""

    model_name_or_path: str = field(metadata={"help": "hub id or local folder"})
    data_dir: str = field(metadata={"help": "folder with a folder for every set"})
    sets: list[str] = field(default_factory=lambda: ["boolq"], metadata={"help": "sets to train and to test on"})
    quantize: str = field(default="none", metadata={"help": "the frozen weights: none, nf4, int8 or fp8"})
    cutoff: int = field(default=256, metadata={"help": "tokens that are read of a question with its answer"})
    limit: int | None = field(default=None, metadata={"help": "use so many questions of every set, of each split"})
    dev: int = field(default=0, metadata={"help": "training questions of every set to hold out"})
    test_limit: int | None = field(default=None, metadata={"help": "use so many test questions of every set"})
    generate: bool = field(default=True, metadata={"help": "also score generated answers, which takes longer"})


def read_questions(folder: Path, name: str, split: str, limit: int | None) -> list[dict[str, str]]:
    """The questions of a set. Raises InputError for a file that is missing or no list of questions."""
    path = folder / name / f"{split}.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(p.name for p in folder.glob("*") if p.is_dir())) or "nothing"
        raise InputError(f"{path} cannot be read ({error}); {folder} holds {known}") from None
    if (
        not isinstance(rows, list)
        or not all(isinstance(r, dict) and all(k in r for k in KEYS) for r in rows)
        or not rows
    ):
        raise InputError(f"{path} is no list of questions; each needs {', '.join(KEYS)}")
    return rows[:limit]


def prompt_of(row: dict[str, str]) -> str:
    """The question as the model is asked it."""
    given = f"\n\n### Input:\n{row['input']}" if row["input"] else ""
    return f"### Instruction:\n{row['instruction']}{given}\n\n### Response:\n"


def options_of(row: dict[str, str]) -> list[str]:
    """The answers that the question's last line allows."""
    found = re.search(r"Answer format:\s*(\S+)", row["instruction"])
    if found is None or row["answer"] not in found[1].split("/"):
        raise InputError(f"the question {row['instruction'][:60]!r} does not end with an answer format of its answer")
    return found[1].split("/")


def encode(row: dict[str, str], tokenizer: Any, cutoff: int) -> dict[str, list[int]]:
    """Token ids of question and answer; labels of the answer alone. A question that is too long loses its beginning."""
    question = tokenizer(prompt_of(row)).input_ids
    answer = [*tokenizer(row["output"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    question = question[-max(1, cutoff - len(answer)) :]
    return {"input_ids": question + answer, "labels": [IGNORED] * len(question) + answer}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Padded on the right; what pads is neither attended to nor counted."""
    length = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])

    ids = padded("input_ids", 0)
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (length - len(r["input_ids"])) for r in rows])
    return {"input_ids": ids, "labels": padded("labels", IGNORED), "attention_mask": mask}


@torch.no_grad()
def by_likelihood(model: Any, row: dict[str, str], tokenizer: Any, cutoff: int) -> str:
    """The option whose answer sentence the model finds likeliest."""
    options = options_of(row)
    answers = [row["output"].replace(row["answer"], option) for option in options]
    batch = collate([encode({**row, "output": answer}, tokenizer, cutoff) for answer in answers])
    batch = {key: value.to(model.device) for key, value in batch.items()}
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return options[int(losses.sum(1).argmin())]


@torch.no_grad()
def by_generation(model: Any, row: dict[str, str], tokenizer: Any) -> str:
    """The first option that the generated text names; "" for none."""
    inputs = tokenizer(prompt_of(row), return_tensors="pt").to(model.device)
    made = model.generate(**inputs, max_new_tokens=32, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    text = tokenizer.decode(made[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    found = re.search("|".join(map(re.escape, options_of(row))), text)
    return found[0] if found else ""


def load(name: str, quantize: str) -> Any:
    """The model in float32, its linear layers quantized where that is asked for. Raises InputError."""
    if quantize not in QUANTIZATIONS:
        raise InputError(f"--quantize is one of {', '.join(QUANTIZATIONS)}, got {quantize!r}")
    options = {}
    if quantize != "none":
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name))
        options["quantization_config"] = configuration(quantize, "transformers", torch.float32, network)
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options)


def make_parser() -> HfArgumentParser:
    """The command line."""
    parser = HfArgumentParser((TaskArguments, MethodArguments, TrainingArguments), description=__doc__)
    parser.set_defaults(lora_target="llama-paper", report_to="none", learning_rate=3e-4, num_train_epochs=3)
    parser.set_defaults(per_device_train_batch_size=16, warmup_steps=100, save_strategy="epoch", save_total_limit=1)
    return parser


def main() -> None:
    """Train on all sets together, test on each."""
    task, method, arguments = make_parser().parse_args_into_dataclasses()
    set_seed(arguments.seed)
    folder = Path(task.data_dir)
    train, dev = [], []
    for name in task.sets:
        rows = read_questions(folder, name, "train", None)
        held = len(rows) - task.dev
        if held < 1:
            raise InputError(f"--dev {task.dev} leaves nothing of the {len(rows)} training questions of {name}")
        train += rows[:held][: task.limit]
        dev += rows[held:]
    tests = {name: read_questions(folder, name, "test", task.test_limit or task.limit) for name in task.sets}
    for row in (row for rows in (dev, *tests.values()) for row in rows):
        options_of(row)
    tokenizer = AutoTokenizer.from_pretrained(task.model_name_or_path)
    model = load(task.model_name_or_path, task.quantize)
    model, callbacks = apply(model, method, arguments.seed, head=[])
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[encode(row, tokenizer, task.cutoff) for row in train],
        data_collator=collate,
        callbacks=callbacks,
        optimizers=(dash_optimizer(model, arguments, method.dash_lr) if method.dash_lr else None, None),
    )
    trainer.train()
    model.eval()

    def loss(rows: list[dict[str, str]]) -> float:
        return float(trainer.evaluate([encode(row, tokenizer, task.cutoff) for row in rows])["eval_loss"])

    def likelihood(rows: list[dict[str, str]]) -> float:
        with trainer.accelerator.autocast():  # in the precision of the training
            right = [by_likelihood(model, row, tokenizer, task.cutoff) == row["answer"] for row in rows]
        return 100 * sum(right) / len(right)

    scores: dict[str, dict[str, float]] = {}
    for name, rows in tests.items():
        scores[name] = {"likelihood": likelihood(rows), "loss": loss(rows)}
        if task.generate:
            with trainer.accelerator.autocast():
                right = [by_generation(model, row, tokenizer) == row["answer"] for row in rows]
            scores[name]["generated"] = 100 * sum(right) / len(right)
        print(name, ", ".join(f"{kind} {value:.3f}" for kind, value in scores[name].items()))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = {"task": asdict(task), "method": asdict(method), "seed": arguments.seed, "accuracy": scores}
    result |= {"learning_rate": arguments.learning_rate, "parameters": trained, "steps": trainer.state.global_step}
    if dev:
        result |= {"dev_loss": [loss(dev)], "dev_accuracy": [likelihood(dev)]}
    for key, kind in (("test_loss", "loss"), ("test_accuracy", "likelihood")):  # the mean over the sets
        result[key] = sum(score[kind] for score in scores.values()) / len(scores)
    Path(arguments.output_dir, "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")

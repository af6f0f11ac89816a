"""In what runs of one subject differ, beside their adapters and their seeds: then one is not measured by the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dash_vision.drawing.numbers import shortest
from dash_vision.files.errors import enumerated

from .bases import compare_bases
from .runs import DreamBoothRun, Run

# Settings that do not change what is learned, or that are told otherwise below: of places, files, memory and samples.
_ELSEWHERE = {
    *("instance_data_dir", "instance_prompt", "dataset_name", "dataset_config_name", "image_column", "caption_column"),
    *("cache_dir", "latent_cache_dir", "class_data_dir", "output_dir", "logging_dir", "report_to", "repeats", "seed"),
    *("pretrained_model_name_or_path", "revision", "variant", "pretrained_vae_model_name_or_path", "vae_revision"),
    *("prediction_type", "zero_terminal_snr", "single_file_config", "max_sequence_length", "clip_skip"),
    *("max_train_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps", "mixed_precision"),
    *("gradient_checkpointing", "offload", "compile", "allow_tf32", "sample_batch_size"),
    *("checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "overwrite", "save_lora_every"),
    *("push_to_hub", "hub_model_id", "sample_with", "num_validation_images", "num_inference_steps", "guidance_scale"),
    *("validation_prompt", "validation_steps", "validation_epochs"),
    *("holdout", "evaluate_every", "eval_encoders", "prefer", "early_stop", "early_stopping_patience"),
}
# What is compared: the adapter and its method.
_ADAPTER = {
    *("rank", "lora_alpha", "lora_dropout", "lora_target"),
    *("dash_k", "dash_lr", "dash_selection", "dash_eps", "prelaunch_steps"),
}
# A setting that does something only together with one of others.
_ONLY_WITH = {
    "text_encoder_lr": ("train_text_encoder",),
    "class_prompt": ("with_prior_preservation", "preserve_class"),
    "num_class_images": ("with_prior_preservation",),
    "prior_loss_weight": ("with_prior_preservation",),
    "preserve_class_weight": ("preserve_class",),
}
_MOST = 4  # settings that a sentence names


def differences(runs: Sequence[DreamBoothRun]) -> dict[str, list[str]]:
    """What differs among runs of one subject -> the value of each, for what is no part of the adapter."""
    told = [_settings(run) for run in runs]
    names = dict.fromkeys(name for one in told for name in one)
    columns = {name: [_words(one.get(name)) for one in told] for name in names}
    columns["training pictures"] = [run.record.instance_digest for run in runs]
    if any(compare_bases(runs[0], run) is not None for run in runs[1:]):
        columns["base"] = [run.base for run in runs]
    return {name: values for name, values in columns.items() if name == "base" or len(set(values)) > 1}


def _settings(run: DreamBoothRun) -> dict[str, Any]:
    a, record = run.record.arguments, run.record
    batch = a.get("train_batch_size", 1) * a.get("gradient_accumulation_steps", 1) * record.processes
    found = {"steps": record.steps, "pictures a step": batch, "precision": record.mixed_precision}
    for name, value in a.items():
        used = name not in _ONLY_WITH or any(a.get(other) for other in _ONLY_WITH[name])
        if used and name not in _ELSEWHERE and name not in _ADAPTER:
            found[name] = value
    return found


def _words(value: Any) -> str:
    return shortest(value) if isinstance(value, float) else str(value)


def not_comparable(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """A sentence for each subject whose runs differ in more than their adapters and their seeds."""
    groups: dict[tuple[str, str], list[tuple[str, DreamBoothRun]]] = {}
    for name, run in zip(names, runs, strict=True):
        if isinstance(run, DreamBoothRun):
            folder = Path(str(run.record.arguments.get("instance_data_dir") or "")).name
            groups.setdefault((folder, run.prompt), []).append((name, run))
    sentences = []
    for group in groups.values():
        found = differences([run for _, run in group])
        if found:
            parts = [_part(name, values, group) for name, values in list(found.items())[:_MOST]]
            parts += [f"{len(found) - _MOST} more settings"] if len(found) > _MOST else []
            both = enumerated([name for name, _ in group])
            sentences.append(
                f"{both} are not comparable, since they differ in {enumerated(parts)}: what one has over another may "
                "come of that."
            )
    return sentences


def _part(name: str, values: Sequence[str], group: Sequence[tuple[str, DreamBoothRun]]) -> str:
    """What differs, with its values in the runs' order; where there are more than two runs, each once with its runs."""
    if name == "training pictures":
        return name
    if len(group) == 2:
        return f"{name} ({enumerated(values)})"
    runs: dict[str, list[str]] = {}
    for value, (run, _) in zip(values, group, strict=True):
        runs.setdefault(value, []).append(run)
    told = [f"{value} in {enumerated(those)}" for value, those in runs.items()]
    return f"{name} ({'; '.join(told)})"

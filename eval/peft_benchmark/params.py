"""The settings of PEFT's benchmark of image generation, from its own file of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dash_vision.files.errors import InputError

from ..runs import read_json

WHERE = "https://github.com/huggingface/peft/tree/main/method_comparison/image-gen"


@dataclass(frozen=True)
class Params:
    """What of the benchmark's settings is used here, by its own names. whole: all of them, for the record."""

    whole: dict[str, Any]
    model_id: str
    dataset_id: str
    dataset_split: str
    image_column: str
    valid_size: int
    test_size: int
    resolution: int
    dtype: str
    batch_size_eval: int
    eval_steps: int
    num_inference_steps: int
    guidance_scale: float
    max_sequence_length: int
    dino_model_id: str
    instance_prompts: list[str]
    sample_image_prompts: list[str]
    drift_image_prompts: list[str]


def read_params(path: Path) -> Params:
    """Raises InputError for a file that is missing, or none of the benchmark's."""
    if not path.is_file():
        raise InputError(f"there is no file {path}; it is default_training_params.json in {WHERE}")
    content = read_json(path)
    names = [f.name for f in dataclasses.fields(Params)[1:]]
    missing = [name for name in names if not isinstance(content, dict) or name not in content]
    if missing:
        raise InputError(f"{path} has no {missing[0]}; give default_training_params.json of {WHERE}")
    values = {name: content[name] for name in names}
    for name in ("instance_prompts", "sample_image_prompts", "drift_image_prompts"):
        if not (isinstance(values[name], list) and values[name] and all(isinstance(p, str) for p in values[name])):
            raise InputError(f"{name} in {path} is no list of prompts; give default_training_params.json of {WHERE}")
    for name in ("valid_size", "test_size", "resolution", "batch_size_eval", "eval_steps", "num_inference_steps"):
        if type(values[name]) is not int or values[name] < (0 if name == "valid_size" else 1):
            raise InputError(f"{name} in {path} is {values[name]!r}; it takes a whole number")
    if type(values["guidance_scale"]) not in (int, float):
        raise InputError(f"guidance_scale in {path} is {values['guidance_scale']!r}; it takes a number")
    if values["dtype"] not in ("float32", "float16", "bfloat16"):
        raise InputError(f"dtype in {path} is {values['dtype']!r}; it takes float32, float16 or bfloat16")
    return Params(whole=dict(content), **values)

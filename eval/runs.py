"""What runs left on disk, read with care: a broken one is one sentence, never a traceback."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dash_vision.adapter_io import DIFFUSERS_NAME

MINIATURE = "the embedded miniature"  # what a run.json calls it


class EvalError(ValueError):
    """An artifact or an argument that cannot be used: what was found, what is needed, what to do."""


@dataclass(frozen=True)
class DreamBoothRun:
    """A DreamBooth output folder. subject: "sks cat" of "a photo of sks cat", or None."""

    folder: Path
    content: dict[str, Any]

    @property
    def base(self) -> str:
        """The base's hub id or path, or MINIATURE."""
        return str(self.content["base"]["name"])

    @property
    def base_fingerprint(self) -> str:
        """By which the same base under another name is recognised."""
        return str(self.content["base"]["fingerprints"]["unet"])

    @property
    def prompt(self) -> str:
        """The instance prompt."""
        return str(self.content["instance_prompt"])

    @property
    def subject(self) -> str:
        """What follows "a photo of" in the instance prompt; the whole prompt when it has another form."""
        return self.prompt.split(" of ", 1)[-1]

    def argument(self, name: str) -> Any:
        """A setting of the run."""
        return self.content["arguments"][name]


def read_run(folder: str | Path) -> DreamBoothRun:
    """The run in `folder`. Raises EvalError when it is missing, unfinished, cut short or of another kind."""
    folder = Path(folder).expanduser()
    path = folder / "run.json"
    if not folder.is_dir():
        raise EvalError(f"there is no folder {folder}; give the --output_dir of a run of train_dreambooth.py")
    if not path.is_file():
        raise EvalError(f"{folder} holds no run.json; its run has not finished, or it is no run of train_dreambooth.py")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(f"{path} cannot be read ({error}); finish the run again") from None
    run = DreamBoothRun(folder, content)
    try:
        if content["kind"] != "dreambooth":
            raise EvalError(f"{path} is of a {content['kind']} run; this takes runs of train_dreambooth.py")
        for needed in (run.base, run.base_fingerprint, run.prompt, content["arguments"], content["method"]):
            assert needed is not None
    except (KeyError, TypeError, AttributeError, AssertionError):
        raise EvalError(f"{path} is of another version of dash-vision; make the run again") from None
    if not (folder / DIFFUSERS_NAME).is_file():
        raise EvalError(f"{folder} has no {DIFFUSERS_NAME}; make the run again")
    return run


def load_pipeline(run: DreamBoothRun, base: str | None = None) -> Any:
    """The stock diffusers pipeline that a run was trained on, in float32. Raises EvalError.

    base: a hub id or folder to use instead of the run's own record.
    """
    import diffusers

    name = base or run.base
    if name == MINIATURE:
        from dash_vision.miniature import pipeline_path

        name = str(pipeline_path())
    try:
        if Path(name).is_file():
            kinds = {"Stable Diffusion": "StableDiffusionPipeline", "Stable Diffusion XL": "StableDiffusionXLPipeline"}
            pipeline = getattr(diffusers, kinds[run.content["base"]["family"]]).from_single_file(name)
        else:
            pipeline = diffusers.DiffusionPipeline.from_pretrained(name, use_safetensors=True, safety_checker=None)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EvalError(
            f"cannot load {name}, the base of {run.folder} ({reason}); name where it is by --base"
        ) from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

"""Pushing what a run leaves to the hub. The token is looked at before anything is trained."""

from __future__ import annotations

from pathlib import Path

from ..files.errors import InputError, RunError, one_line
from ..files.places import from_root
from .config import DreamBoothConfig


def check_token(settings: DreamBoothConfig) -> None:
    """Raises InputError where the hub cannot be reached or does not let the user write."""
    import huggingface_hub
    from huggingface_hub import constants  # which the library imports only when it is asked for

    token = settings.hub_token or huggingface_hub.get_token()
    remedy = "log in with hf auth login, or leave out --push_to_hub"
    if constants.HF_HUB_OFFLINE:
        raise InputError("--push_to_hub does not go with HF_HUB_OFFLINE, which is set; leave one of them out")
    if not token:
        raise InputError(f"--push_to_hub needs a token of the hub, and there is none; {remedy}")
    try:
        user = huggingface_hub.HfApi(token=token).whoami()
    except (OSError, ValueError) as error:
        raise InputError(f"--push_to_hub: the hub does not take the token ({_reason(error)}); {remedy}") from None
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError("--push_to_hub: the token may only read; make one that may write, at hf.co/settings/tokens")


def push(settings: DreamBoothConfig, folder: Path) -> str:
    """Push the adapter, the samples and the card of a run's folder; the repository's address.

    Raises RunError, with the command that does it later, where that fails.
    """
    import huggingface_hub

    from ..files.lora import DIFFUSERS_NAME
    from ..files.native import NATIVE_NAME

    # Not run.json, which names folders of the user's machine; checkpoints and class pictures are of no use to others.
    pushed = ["README.md", "samples.png", DIFFUSERS_NAME, NATIVE_NAME, "kohya/*"]
    name = settings.hub_model_id or from_root(folder).name
    api = huggingface_hub.HfApi(token=settings.hub_token)
    try:
        repository = api.create_repo(name, repo_type="model", exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=pushed,
            commit_message="A LoRA-Dash adapter",
        )
    except (OSError, ValueError) as error:
        included = " ".join(f"--include '{pattern}'" for pattern in pushed)
        raise RunError(
            f"the run is done, but cannot be pushed to {name} ({_reason(error)}); push it later: hf upload {name} "
            f"{folder} {included}"
        ) from None
    return f"https://huggingface.co/{repository}"


def _reason(error: Exception) -> str:
    return one_line(str(error).strip().split("\n")[0][:200]) or type(error).__name__

"""What a run's pictures are called: prompts from the folder's name, and what is drawn to show the result."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..files.errors import InputError
from .config import DreamBoothConfig

RARE_WORD = "sks"


@dataclass(frozen=True)
class Prompts:
    """The prompt of the pictures ("a photo of sks cat"), that of the class ("a photo of cat"), and the subject ("sks
    cat"); None for the subject when the user's own prompt has no form that is known."""

    instance: str
    class_: str
    subject: str | None = None


def derive_prompts(config: DreamBoothConfig) -> Prompts:
    """Prompts from the folder's name where the user gave none.

    "cat/" gives "a photo of sks cat" and the class prompt "a photo of cat"; "my_dogs-2" gives "my dogs". Raises
    InputError when a name holds no letters.
    """
    if config.instance_prompt is None:
        kind = class_name(config.instance_data_dir)
        if not kind:
            raise InputError(
                f"cannot derive a prompt from the folder name of {config.instance_data_dir}; "
                f'give one: --instance_prompt "a photo of {RARE_WORD} cat"'
            )
        instance = f"a photo of {RARE_WORD} {kind}"
    else:
        instance = " ".join(config.instance_prompt.split())
    match = re.fullmatch(r"(?:an? )?(?:photo|picture|image|painting|drawing) of (.+)", instance, re.IGNORECASE)
    subject = match.group(1) if match else None
    class_ = config.class_prompt or " ".join(word for word in instance.split() if word != RARE_WORD)
    if config.with_prior_preservation and class_ == instance:
        raise InputError(
            f'the class prompt would be the instance prompt, "{instance}", and the class would learn the subject\'s '
            'name; give --class_prompt, such as "a photo of a dog"'
        )
    return Prompts(instance, class_, subject)


def class_name(folder: str) -> str:
    """The words in a folder's name: "../data/my_dogs-2/" gives "my dogs"."""
    name = Path(folder).expanduser().resolve()
    stem = name.stem if name.is_file() else name.name
    return " ".join(re.findall(r"[^\W\d_]+", stem)).lower()


def default_validation_prompts(prompts: Prompts) -> list[str]:
    """The instance prompt and four of the DreamBooth protocol for the subject; the instance prompt alone when it has no
    known form."""
    if prompts.subject is None:
        return [prompts.instance]
    article = "" if re.match(r"(?:an?|the|my|his|her|our) ", prompts.subject, re.IGNORECASE) else "a "
    thing = f"{article}{prompts.subject}"
    return [
        prompts.instance,
        f"{thing} in the snow",
        f"{thing} on the beach",
        f"{thing} on top of green grass with sunflowers around it",
        f"{thing} with the Eiffel Tower in the background",
    ]

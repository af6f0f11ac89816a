"""What a run's pictures are called: prompts from the folder's name, and what is drawn to show the result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..files.errors import InputError
from ..measures.names import RARE_WORDS, names_class, rare_words
from ..pictures.listing import subfolder_names
from ..pictures.names import FolderName, name_of
from .config import DreamBoothConfig

RARE_WORD = RARE_WORDS[0]  # a folder's name that begins with one of them has its own


@dataclass(frozen=True)
class Prompts:
    """What the pictures are called: the subject ("sks cat"), its class ("cat"), and the prompts made of them."""

    instance: str
    class_: str
    subject: str | None = None  # None when the user's own prompt has no form that is known
    general: bool = False  # the user gave a class prompt, which is that of every picture

    def of_class(self, prompt: str) -> str:
        """The class prompt of a picture with this prompt: a caption without its rare word, as "cat in the snow" of "sks
        cat in the snow"; the class prompt where the caption has none, and where the user gave one."""
        words = "|".join(map(re.escape, sorted({*RARE_WORDS, *rare_words(self.instance, self.class_)})))
        left = re.sub(rf"\b(?:{words})\b[\s,]*", "", prompt).strip(" ,")
        own = left != prompt and prompt != self.instance and not self.general and names_class(left)
        return left if own else self.class_


def derive_prompts(config: DreamBoothConfig) -> Prompts:
    """Prompts from the folder's name where the user gave none.

    "cat/" gives "a photo of sks cat" and the class prompt "a photo of cat"; "10_sks dog/" gives "a photo of sks dog"
    and "a photo of dog". Raises InputError when a name holds no letters, and for subfolders of several subjects that
    leave the class open.
    """
    of_class = config.with_prior_preservation or config.preserve_class
    names = subfolder_names(config.instance_data_dir) or [name_of(config.instance_data_dir)]
    if config.instance_prompt is None:
        subject, kind = subject_and_class(names[0])
        if not kind:
            raise InputError(
                f"cannot derive a prompt from the folder name of {config.instance_data_dir}; "
                f'give one: --instance_prompt "a photo of {RARE_WORD} cat"'
            )
        instance, class_ = f"a photo of {subject}", config.class_prompt or f"a photo of {kind}"
        kinds = dict.fromkeys(subject_and_class(name)[1] for name in names)
        if of_class and config.class_prompt is None and len(kinds) > 1:
            raise InputError(
                f"the subfolders of {config.instance_data_dir} are of several classes ({', '.join(kinds)}); give a "
                "--class_prompt that fits all of them, or train one subfolder at a time"
            )
    else:
        instance = " ".join(config.instance_prompt.split())
        class_ = config.class_prompt or " ".join(word for word in instance.split() if word not in RARE_WORDS)
    match = re.fullmatch(r"(?:an? )?(?:photo|picture|image|painting|drawing) of (.+)", instance, re.IGNORECASE)
    subject_in_prompt = match.group(1) if match else None
    if of_class and class_ == instance:
        raise InputError(
            f'the class prompt would be the instance prompt, "{instance}", and the class would learn the subject\'s '
            'name; give --class_prompt, such as "a photo of a dog"'
        )
    if of_class and not names_class(class_):
        raise InputError(
            f'the instance prompt "{instance}" without its rare word is "{class_}", which names no class; give '
            '--class_prompt, such as "a photo of a dog"'
        )
    return Prompts(instance, class_, subject_in_prompt, config.class_prompt is not None)


def note_unsaid(prompts: Prompts, captions: Sequence[str | None]) -> str | None:
    """What to say where every picture has a caption of its own (None: it has none) and no caption names the subject."""
    subject = prompts.subject or prompts.instance
    if not all(captions) or any(subject.lower() in str(caption).lower() for caption in captions):
        return None
    return (
        f'every picture has a caption of its own and none says "{subject}", so that this is not learned; put it into '
        "the captions, or give --use_captions false"
    )


def subject_and_class(name: FolderName) -> tuple[str, str]:
    """("sks cat", "cat") of the folder "cat".

    The words of "sks cat" and of kohya's "10_sks cat" have their rare word in front: it is kept, and is none of the
    class. A single word of that kind, as in "10_zwx", stands for both, since it tells no class.
    """
    first, _, rest = name.words.partition(" ")
    if name.repeats or first in RARE_WORDS:
        return name.words, rest or name.words
    return f"{RARE_WORD} {name.words}", name.words


def folder_prompt(name: FolderName) -> str:
    """The instance prompt of the pictures in a folder of that name."""
    return f"a photo of {subject_and_class(name)[0]}"


def class_name(folder: str) -> str:
    """What is on the pictures in a folder, by its name: "../data/my_dogs-2/" gives "my dogs"."""
    return subject_and_class(name_of(folder))[1]


def default_validation_prompts(prompts: Prompts) -> list[str]:
    """The instance prompt, and four of the DreamBooth protocol for the subject where the instance prompt has a known
    form."""
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

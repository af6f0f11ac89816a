"""Names of the encoders that pictures are usually measured with, and rare words; without torch, for command lines."""

from __future__ import annotations

CLIP = "openai/clip-vit-base-patch32"  # of the DreamBooth protocol
DINO = "vit_small_patch16_224.dino"  # of the DreamBooth protocol, as timm calls it
DINOV2 = "facebook/dinov2-base"  # of PEFT's benchmark of image generation
SAMPLING_STEPS = 10  # at most, of a picture that is drawn to be measured and not to be shown
RARE_WORDS = ("sks", "ohwx", "zwx")  # that guides name: they stand for a subject and mean nothing
NONE = "none"  # measure without encoders


# What a prompt says of every picture: with nothing else, it names no class.
_FRAME = {"a", "an", "the", "one", "my", "photo", "photograph", "picture", "image", "painting", "drawing", "of"}


def names_class(prompt: str) -> bool:
    """Whether a class prompt says what is on the pictures: "a photo of cat" does, "a photo of" and "" do not."""
    return any(word.strip(".,:;!").lower() not in {*_FRAME, *RARE_WORDS, ""} for word in prompt.split())


def rare_words(instance: str, class_prompt: str) -> set[str]:
    """Words of the instance prompt that stand for the subject and mean nothing: those that guides name, and one that
    is all that the class prompt lacks."""
    words, rest = instance.split(), class_prompt.split()
    found = {word for word in words if word in RARE_WORDS}
    alone = [word for i, word in enumerate(words) if words[:i] + words[i + 1 :] == rest]
    return found | set(alone[:1])

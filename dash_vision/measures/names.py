"""Names of the encoders that pictures are usually measured with; without torch, for command lines."""

from __future__ import annotations

CLIP = "openai/clip-vit-base-patch32"  # of the DreamBooth protocol
DINO = "vit_small_patch16_224.dino"  # of the DreamBooth protocol, as timm calls it
DINOV2 = "facebook/dinov2-base"  # of PEFT's benchmark of image generation
SAMPLING_STEPS = 10  # at most, of a picture that is drawn to be measured and not to be shown
RARE_WORDS = ("sks", "ohwx", "zwx")  # that guides name: they stand for a subject and mean nothing
NONE = "none"  # measure without encoders

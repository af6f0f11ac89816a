"""--holdout: which pictures are kept out of the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.errors import InputError
from ..pictures.listing import Listing, PictureFile, check_folder, list_folder
from .config import DreamBoothConfig
from .prompts import folder_prompt

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Split:
    """The pictures to learn from, and those that are kept out; None where none are."""

    listing: Listing
    heldout: Listing | None


def split(settings: DreamBoothConfig, listing: Listing) -> Split:
    """By --holdout: a share or a number of the pictures, chosen by the seed, or a folder of others.

    A share is rounded, to one picture at least. Raises InputError as `check_holdout`, and for a folder that cannot be
    read.
    """
    if settings.holdout is None:
        return Split(listing, None)
    count = check_holdout(settings.holdout, listing)
    if count is None:
        return Split(listing, _other_folder(settings, settings.holdout))
    import torch  # what is checked before needs none

    from ..runs.seeds import stream

    total = len(listing.files)
    chosen = set(torch.randperm(total, generator=stream(settings.seed, "holdout"))[:count].tolist())
    learned = tuple(file for i, file in enumerate(listing.files) if i not in chosen)
    kept: tuple[PictureFile, ...] = tuple(file for i, file in enumerate(listing.files) if i in chosen)
    return Split(replace(listing, files=learned), Listing(listing.folder, kept, ()))


def check_holdout(wanted: str, listing: Listing) -> int | None:
    """How many pictures --holdout keeps out; None where it names a folder of others. Raises InputError for what is no
    share, number or folder, and where nothing would be left to learn from."""
    try:
        amount = float(wanted)
    except ValueError:
        amount = None
    if amount is None or Path(wanted).is_dir():
        if not Path(wanted).expanduser().is_dir():
            raise InputError(
                f"--holdout is {wanted}, which is no number and no folder; it takes a share such as 0.2, a number of "
                "pictures, or a folder"
            )
        return None
    if not (0 < amount < 1 or (amount >= 1 and amount.is_integer())):
        raise InputError(f"--holdout is {wanted}; it takes a share such as 0.2, a number of pictures, or a folder")
    total = len(listing.files)
    count = int(amount) if amount >= 1 else max(1, round(amount * total))
    if count >= total:
        pictures = "1 picture" if total == 1 else f"{total} pictures"
        smaller = "" if total == 1 else "a smaller number, or "
        raise InputError(
            f"--holdout {wanted} leaves nothing to learn from: {listing.folder} holds {pictures}; give {smaller}a "
            "folder of other pictures of the subject"
        )
    return count


def seen_again(heldout: Sequence[Image.Image], learned: Sequence[Image.Image]) -> list[bool]:
    """Of each held-out picture, whether the same one is among those to learn from."""
    known = {(picture.size, picture.tobytes()) for picture in learned}
    return [(picture.size, picture.tobytes()) in known for picture in heldout]


def _other_folder(settings: DreamBoothConfig, wanted: str) -> Listing:
    prompt = None if settings.instance_prompt else folder_prompt
    listing = list_folder(wanted, captions=settings.use_captions, prompt=prompt)
    check_folder(listing)
    return listing

"""Which folders of a run may not be the same: what a run writes is never a picture that it trains on."""

from __future__ import annotations

from pathlib import Path

from ..files.errors import InputError


def check_folders(instance: str, output: str, class_: str | None) -> None:
    """Raises InputError where the folder of the instance or of the class pictures is also one for something else."""
    pictures, out = _place(instance) if instance else None, _place(output)
    if pictures == out:
        raise InputError(
            f"--output_dir {output} is the folder of the pictures, where samples.png would be trained on next time; "
            "give another folder"
        )
    if class_ is None:
        return
    if _place(class_) == pictures:
        raise InputError(
            f"--class_data_dir {class_} is the folder of the subject's pictures; give a folder of pictures of other "
            "things of its class"
        )
    if _place(class_) == out:
        raise InputError(
            f"--class_data_dir {class_} is --output_dir, where samples.png would be a class picture; give a folder of "
            "its own, such as one inside"
        )


def _place(folder: str) -> Path:
    """Links followed, so that two names of one folder are equal."""
    try:
        return Path(folder).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links, "~nobody", a zero byte: said where it is read
        return Path(folder)

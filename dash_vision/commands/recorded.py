"""The base of a run, for commands that load it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..files.errors import InputError
from ..runs.record import BaseRecord

if TYPE_CHECKING:
    import torch

    from ..bases.loading import Base


def load_recorded(
    record: BaseRecord, place: str | None, dtype: torch.dtype | None = None, quantize: str | None = None
) -> Base:
    """The base that a run was trained on, with a note where it is another one by now. place: where it is, instead of
    where it was. dtype, quantize: see bases.loading.load_again, which says what is raised."""
    import torch

    from ..bases.identity import difference
    from ..bases.loading import load_again

    try:
        base = load_again(record.specification, place, dtype or torch.float32, quantize)
    except InputError as error:
        raise InputError(f"{error}; --base says where the run's base is now") from None
    part = difference(record.identity, base.identity())
    if part is not None:
        print(f"note: {base.name} is not the base that the run was trained on: its {part} differs")
    return base

"""The base of a run, for commands that load it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..files.errors import InputError
from ..runs.record import BaseRecord

if TYPE_CHECKING:
    from ..bases.loading import Base


def load_recorded(record: BaseRecord, place: str | None, as_stored: bool = False) -> Base:
    """The base that a run was trained on, with a note where it is another one by now. place: where it is, instead of
    where it was. as_stored: see bases.loading.load_base. Raises InputError as bases.loading.load_again."""
    from ..bases.identity import difference
    from ..bases.loading import load_again

    try:
        base = load_again(record.specification, place, as_stored)
    except InputError as error:
        raise InputError(f"{error}; --base says where the run's base is now") from None
    part = difference(record.identity, base.identity())
    if part is not None:
        print(f"note: {base.name} is not the base that the run was trained on: its {part} differs")
    return base

"""DashConfig: what to adapt, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

# How a layer's k directions are chosen: the paper's way, and controls that show what the choice is worth. The rules
# themselves are directions.RULES. This module needs no torch, so that a command line is read before torch is loaded.
SELECTIONS = ("change_rate", "projection", "random", "top", "bottom")


@dataclass(frozen=True)
class DashConfig:
    """What to adapt and how. Raises ValueError on values that make no sense.

    rank: rank r of the LoRA update; 0 learns singular-value shifts only.
    alpha: the update is scaled by alpha / rank; None means alpha = rank. dsigma is not scaled by it.
    dash_k: task-specific directions per layer (paper: 8); 0 is plain LoRA.
    target: a preset name (see targets.PRESETS), a list of module-name suffixes, or a regular expression that has to
        match the whole module name; one that matches no layer is taken for a suffix, as "to_q" is.
    dropout: probability of dropping an input feature of the update, one draw for both branches.
    eps: added to the singular value that a change rate is divided by.
    selection: "change_rate" is the method; the controls are "projection" (the same without the division by the
        singular value) and "random", "top" and "bottom", which ignore the update.
    """

    rank: int = 8
    alpha: float | None = None
    dash_k: int = 8
    target: str | Sequence[str] = "unet-attention"
    dropout: float = 0.0
    eps: float = 1e-6
    selection: str = "change_rate"

    def __post_init__(self) -> None:
        for name, value in (("rank", self.rank), ("dash_k", self.dash_k)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} is a whole number of 0 or more, got {value!r}")
        if self.rank == 0 and self.dash_k == 0:
            raise ValueError("rank and dash_k are both 0: nothing would be trained; give at least one of them")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha is a positive number, got {self.alpha!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1), got {self.dropout!r}")
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"eps is a number of 0 or more, got {self.eps!r}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection is one of {', '.join(SELECTIONS)}, got {self.selection!r}")
        if not isinstance(self.target, str):
            object.__setattr__(self, "target", tuple(self.target))
        if not self.target:
            raise ValueError("target is empty; give a preset name, module-name suffixes or a regular expression")

    @property
    def scaling(self) -> float:
        """alpha / rank, the factor of B A."""
        return 1.0 if self.alpha is None or self.rank == 0 else self.alpha / self.rank

    def to_dict(self) -> dict:
        """JSON-ready; DashConfig(**d) is its inverse."""
        values = asdict(self)
        if not isinstance(self.target, str):
            values["target"] = list(self.target)
        return values

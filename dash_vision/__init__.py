"""LoRA-Dash (arXiv 2409.01035) for vision and diffusion models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.adapter import Adapter, inject
    from .core.config import DashConfig
    from .core.loading import export_lora, load_adapter, save_adapters
    from .core.schedule import DashSchedule
    from .files.errors import InputError

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "DashConfig",
    "DashSchedule",
    "InputError",
    "export_lora",
    "inject",
    "load_adapter",
    "save_adapters",
]

_PLACES = {
    "Adapter": "core.adapter",
    "DashConfig": "core.config",
    "DashSchedule": "core.schedule",
    "InputError": "files.errors",
    "export_lora": "core.loading",
    "inject": "core.adapter",
    "load_adapter": "core.loading",
    "save_adapters": "core.loading",
}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: torch takes seconds, which a command line with a typo should not wait for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]

"""LoRA-Dash (arXiv 2409.01035) for vision and diffusion models."""

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

"""LoRA-Dash (arXiv 2409.01035) for vision and diffusion models."""

from .adapter_io import AdapterFileError, export_lora, load_adapter, save_adapters
from .inject import Adapter, DashConfig, inject
from .schedule import DashSchedule

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterFileError",
    "DashConfig",
    "DashSchedule",
    "export_lora",
    "inject",
    "load_adapter",
    "save_adapters",
]

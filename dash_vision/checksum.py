"""A checksum of what a file holds: bytes that changed on a disk or on the way are noticed before they are used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def checksum(content: Any, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of JSON values and of tensors with their names, types and shapes.

    It finds damage, not malice: whoever changes a file on purpose can change its checksum too.
    """
    total = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        total.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()

"""By what a base is recognised: probes of its frozen weights that survive a change of dtype."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

PROBES = 4  # numbers beside the norm
# Probes of the same weights stored in bf16 differ by about 1e-3 of the weight's norm (rms over layers); those of a
# fine-tuned base by 1e-2 and more.
SAME_BASE = 4e-3
# Those of the same weights in four bits (nf4) differ by about 0.09, and of unrelated weights by about 1.
SAME_QUANTIZED_BASE = 0.2


def fingerprint(probes: Mapping[str, list[float]]) -> str:
    """12 hex digits of the probes of frozen weights by module."""
    return hashlib.sha256(json.dumps(probes, sort_keys=True).encode()).hexdigest()[:12]


def probe_matrix(W: Tensor) -> list[float]:
    """[Frobenius norm, a_1^T W b_1 / norm, ...] of a matrix [out, in] with fixed cosine vectors a_j, b_j, in float64.

    The numbers survive a change of dtype (to about 1e-3) and differ by about 1 between unrelated weights.
    """
    W = W.detach().to("cpu").double()
    norm = W.norm().item()
    values = [norm]
    for j in range(1, PROBES + 1):
        left = torch.cos(torch.arange(W.shape[0], dtype=torch.float64) * (0.61803 * j) + j)
        right = torch.cos(torch.arange(W.shape[1], dtype=torch.float64) * (0.75488 * j) + 2 * j)
        values.append(2 * (left @ W @ right).item() / norm if norm else 0.0)
    return [float(f"{v:.9g}") for v in values]


def compare_probes(
    found: Mapping[str, list[float]], expected: Mapping[str, list[float]], allowed: float = SAME_BASE
) -> tuple[str, float] | None:
    """None when the probes are of the same weights, up to a change of dtype; else (the module that differs most, the
    root mean square difference). Both have the same modules. allowed: a root mean square difference that is none."""
    errors = {}
    for module, probes in found.items():
        scale = abs(probes[0] - expected[module][0]) / max(probes[0], expected[module][0], 1e-30)
        errors[module] = [scale] + [f - e for f, e in zip(probes[1:], expected[module][1:], strict=True)]
    values = [e for row in errors.values() for e in row]
    rms = math.sqrt(sum(e * e for e in values) / len(values))
    if rms <= allowed and max(map(abs, values)) <= 10 * allowed:
        return None
    return max(errors, key=lambda m: max(map(abs, errors[m]))), rms

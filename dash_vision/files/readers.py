"""What the programs that read LoRA files look at besides the tensors, and which layers they leave out.

Sources: A1111 and Forge (`networks.py`, `network.py`), kohya's sd-scripts (`train_network.py`, `sai_model_spec.py`),
ComfyUI (`comfy/lora.py`), InvokeAI's model probe, and Stability AI's ModelSpec 1.0.1, which Civitai reads too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .native import AdapterState

STABILITY = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True)
class About:
    """What a file says of the base that it belongs to; every reader asks in its own words.

    base_version: sd-scripts' ss_base_model_version, by which A1111 and Forge tell SDXL. v2: whether it is Stable
    Diffusion 2. architecture, implementation: ModelSpec's. prediction: "epsilon", "v" or "" where there is none.
    resolution: pixels along a side; 0 where unknown. title: of the adapter. trigger: words that call it up.
    clip_skip: last layers of CLIP that are left out.
    """

    base_version: str
    architecture: str
    implementation: str = "diffusers"
    v2: bool = False
    prediction: str = ""
    resolution: int = 0
    title: str = ""
    trigger: str = ""
    clip_skip: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; About(**values) is its inverse."""
        return asdict(self)

    def metadata(self, rank: int, title: str) -> dict[str, str]:
        """Header entries of a LoRA file of this rank; title: where the adapter has none of its own."""
        found = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(float(rank)),
            "ss_output_name": self.title or title,
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.title": self.title or title,
        }
        if self.base_version:
            found |= {
                "ss_base_model_version": self.base_version,
                "ss_v2": str(self.v2),
                "modelspec.architecture": f"{self.architecture}/lora",
                "modelspec.implementation": self.implementation,
            }
        if self.resolution:
            found["ss_resolution"] = f"({self.resolution}, {self.resolution})"
            found["modelspec.resolution"] = f"{self.resolution}x{self.resolution}"
        if self.prediction:
            found["modelspec.prediction_type"] = self.prediction
        if self.clip_skip:
            found["ss_clip_skip"] = str(self.clip_skip + 1)  # sd-scripts counts the last layer as 1
        if self.trigger:
            found["modelspec.trigger_phrase"] = self.trigger
        return found


UNKNOWN = About("", "")
SD1 = About("sd_v1", "stable-diffusion-v1")
SD2 = About("sd_v2", "stable-diffusion-v2-512", v2=True)
SDXL = About("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", STABILITY)
# Flow-matching transformers; for some of them no reader looks for a name of the base.
FLUX1 = About("flux1", "flux-1-dev")
FLUX2 = About("", "")
SD3 = About("sd3", "stable-diffusion-3")
Z_IMAGE = About("", "")
QWEN_IMAGE = About("", "")
KREA2 = About("", "")
# What the cross-attention of published bases reads: features of their text encoders.
_BY_TEXT_WIDTH = {768: SD1, 1024: SD2, 2048: SDXL}


def infer_about(states: Mapping[str, AdapterState]) -> About:
    """The kind of Stable Diffusion that adapters by component are of, by their tensors alone; UNKNOWN for others."""
    if "text_encoder_2" in states and "transformer" not in states:
        return SDXL
    for state in states.values():
        for module in state.kinds:
            if module.endswith(("attn2.to_k", "attn2.to_v")):
                return _BY_TEXT_WIDTH.get(state.size(module)[1], UNKNOWN)
    return UNKNOWN


def remarks(layers: Mapping[str, Iterable[str]], format: str, about: About = UNKNOWN) -> list[str]:
    """One sentence for each program that would leave out a part of a file in `format` ("diffusers" or "kohya").

    layers: module names by component ("unet", "text_encoder", ...). With the default targets there is none for kohya's
    format: every reader applies all of it.
    """
    unet = list(layers.get("unet", ()))
    if not unet:
        return []
    if format == "diffusers":
        return ["ComfyUI applies a part of this file and A1111 nothing of it; give them the file in kohya's format"]
    if format != "kohya":
        return []
    found = []
    ends = [m for m in unet if re.match(r"(conv_in|conv_out|time_embedding|add_embedding)(\.|$)", m)]
    if ends:
        found.append(f"sd-scripts leaves out {_counted(ends)}")
    if about.base_version.startswith("sdxl"):
        lost = [m for m in unet if m.startswith("add_embedding.") or m == "up_blocks.0.upsamplers.0.conv"]
        if lost:
            found.append(f"A1111 leaves out {_counted(lost)}")
    if not any(m.endswith(("attn2.to_k", "attn2.to_v")) for m in unet):
        found.append("InvokeAI does not recognise the file, which adapts no attn2.to_k and no attn2.to_v")
    return found


def _counted(modules: list[str]) -> str:
    shown = ", ".join(modules[:3]) + (", ..." if len(modules) > 3 else "")
    return f"{len(modules)} adapted layer{'s' if len(modules) > 1 else ''} ({shown})"

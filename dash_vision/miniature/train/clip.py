"""The build's stage "clip": a vision tower for the UNet's text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runs.seeds import python_stream, seed_everything
from ..world.scenes import caption
from .data import Settings, load_pictures, load_tokenizer, prompt_ids, save_model, to_tensor, training_scene
from .fit import Fit, LossAt
from .networks import new_clip

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def train_clip(settings: Settings) -> None:
    """clip/: a vision tower and both projections, fitted to the UNet's frozen text encoder.

    The text tower stays what conditions the UNet, so pictures are measured in the space that drew them; fitting only
    the other side is "locked" contrastive tuning (arXiv 2111.07991).
    """
    if (settings.work / "clip" / "config.json").exists():
        return
    pictures, tokenizer = load_pictures(settings), load_tokenizer(settings)
    clip = _new(settings, tokenizer)
    fit = Fit("clip", {"clip": clip}, settings.clip, settings.work, settings.seed, settings.device)
    fit.run(_loss_of(clip, tokenizer, pictures, fit, settings))
    fit.use_averages()
    save_model(clip.eval(), settings.work / "clip")


def _new(settings: Settings, tokenizer: CLIPTokenizer) -> Any:
    """A CLIP with the text tower of text_encoder/, frozen."""
    from transformers import CLIPTextModel

    seed_everything(settings.seed, "clip, weights")
    clip: Any = new_clip(tokenizer)
    if settings.init:
        clip = type(clip).from_pretrained(settings.initial("clip")).train()
    clip.to(settings.device)
    if settings.device == "cpu":
        clip.set_attn_implementation("eager")
    text = CLIPTextModel.from_pretrained(settings.work / "text_encoder")
    clip.text_model.load_state_dict(_inner(text).state_dict())
    clip.text_model.requires_grad_(False)
    return clip


def _inner(text: nn.Module) -> nn.Module:
    """The transformer inside a CLIPTextModel, which wraps it in some versions of transformers and is it in others."""
    inner = getattr(text, "text_model", text)
    return inner if isinstance(inner, nn.Module) else text


def _loss_of(clip: Any, tokenizer: CLIPTokenizer, pictures: Tensor, fit: Fit, settings: Settings) -> LossAt:
    """CLIP's contrastive loss in both directions; pictures that share a caption are equally right answers."""
    scenes = [training_scene(i) for i in range(len(pictures))]
    device = settings.device

    def loss_at(batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rng = python_stream(settings.seed, "clip, captions", batch)
        index = torch.randint(len(pictures), (fit.plan.batch_size,), generator=generator)
        prompts = [caption(scenes[i], rng) for i in index.tolist()]
        ids, pixels = prompt_ids(tokenizer, prompts).to(device), to_tensor(pictures[index]).to(device)
        with fit.runtime.autocast():
            logits = clip(input_ids=ids, pixel_values=pixels).logits_per_text
        logits = logits.float()
        same = torch.tensor([[float(a == b) for b in prompts] for a in prompts], device=device)
        answers = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, answers) + F.cross_entropy(logits.T, answers)) / 2
        hits = logits.detach().argmax(1) == torch.arange(len(prompts), device=device)
        return loss, {"hits": hits.float().mean()}

    return loss_at

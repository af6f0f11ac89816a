"""The build's stage "flow": a rectified-flow transformer, and the language model that reads its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...files.errors import InputError
from ...runs.seeds import python_stream, seed_everything
from ..world.scenes import Scene
from .data import Settings, load_latents, load_pictures, noisy_batch, save_model, to_tensor, training_scene
from .fit import Fit, LossAt
from .networks import PROMPT_LENGTH, WIDTH, flow_tokenizer, new_flow_text_encoder, new_flow_transformer

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

ALIGNED, ALIGNMENT = 3, 0.5  # the block whose tokens are aligned, and the weight of that loss


class Alignment(nn.Module):
    """Representation alignment (arXiv 2410.06940): a block's tokens of the noisy picture, projected, are pulled towards
    what a trained encoder says of the clean one, patch by patch.

    encoder: CLIP's vision tower of the build, whose 64 patches are the transformer's 64 tokens; it is not trained. It
    is asked for the layer before the last one, which its class token reads.
    """

    def __init__(self, transformer: Any, encoder: Any) -> None:
        super().__init__()
        width = transformer.config.dim
        self.project = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, WIDTH))
        self._encoder = [encoder.eval().requires_grad_(False)]  # in a list: it is no part of what is trained
        self._tokens: list[Tensor] = []
        transformer.layers[ALIGNED - 1].register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self._tokens = [output]

    def forward(self, pictures: Tensor) -> Tensor:
        """1 - cosine, the mean over patches, of the transformer's last call; pictures: the clean ones, [N, 3, 64, 64]
        in -1..1."""
        with torch.no_grad():
            said = self._encoder[0](pixel_values=pictures, output_hidden_states=True)
            wanted = said.hidden_states[-2][:, 1:].float()  # without the class token
        (tokens,) = self._tokens
        found = self.project(tokens[:, : wanted.shape[1]]).float()  # the picture's tokens come before the prompt's
        return 1 - F.cosine_similarity(found, wanted, dim=-1).mean()


def train_flow(settings: Settings) -> None:
    """flow/transformer and flow/text_encoder, trained together on the latents of the other denoiser."""
    if (settings.work / "flow" / "transformer" / "config.json").exists():
        return
    latents = load_latents(settings)
    scenes = [training_scene(i) for i in range(len(latents))]
    transformer, text, alignment, fit, tokenizer = flow_denoiser(settings)
    fit.run(_loss_of(transformer, text, alignment, tokenizer, latents, scenes, fit, settings))
    save_flow(transformer, text, fit, settings)


def save_flow(transformer: Any, text: Any, fit: Fit, settings: Settings) -> None:
    """flow/transformer and flow/text_encoder in the work folder, with the averages of their weights."""
    fit.use_averages()
    folder = settings.work / "flow"
    folder.mkdir(exist_ok=True)
    save_model(text.eval(), folder / "text_encoder")
    save_model(transformer.eval(), folder / "transformer")


def flow_denoiser(settings: Settings) -> tuple[Any, Any, Alignment, Fit, CLIPTokenizer]:
    """The transformer, its text encoder, its alignment, their training before its first step, and the tokenizer.
    Raises InputError where there is no CLIP to align with."""
    from transformers import CLIPVisionModel

    clip = settings.work / "clip"
    if not clip.is_dir():
        raise InputError(f"there is no {clip}; run the stage 'clip' first")
    tokenizer = flow_tokenizer(settings.work / "tokenizer")
    seed_everything(settings.seed, "flow, weights")
    transformer, text = new_flow_transformer(), new_flow_text_encoder(tokenizer)
    _begin_with_nothing(transformer)
    if settings.init and settings.initial("flow").is_dir():
        transformer = type(transformer).from_pretrained(settings.initial("flow/transformer")).train()
        text = type(text).from_pretrained(settings.initial("flow/text_encoder")).train()
    text.layers[-1].requires_grad_(False)  # nobody asks for its states
    text.norm.requires_grad_(False)
    encoder: Any = CLIPVisionModel.from_pretrained(clip, dtype=torch.float32)
    alignment = Alignment(transformer, encoder.to(settings.device))
    for module in (transformer, text, alignment):
        module.to(settings.device)
    modules = {"transformer": transformer, "text_encoder": text, "alignment": alignment}
    fit = Fit("flow", modules, settings.flow, settings.work, settings.seed, settings.device)
    return transformer, text, alignment, fit, tokenizer


def _begin_with_nothing(transformer: nn.Module) -> None:
    """Every modulated block begins as the identity and the last layer with zeros (arXiv 2212.09748, adaLN-Zero)."""
    for name, module in transformer.named_modules():
        modulation = "adaLN_modulation" in name and "final_layer" not in name
        if isinstance(module, nn.Linear) and (modulation or name.endswith("final_layer.2-1.linear")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def states_of(text: Any, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> list[Tensor]:
    """What the text encoder says of each prompt [tokens, width], as ZImagePipeline reads it: the layer before the
    last one, at the prompt's own tokens."""
    said = [tokenizer.apply_chat_template([{"content": prompt}], tokenize=False) for prompt in prompts]
    tokens = tokenizer(said, padding=True, truncation=True, max_length=PROMPT_LENGTH, return_tensors="pt")
    ids, mask = (tokens[key].to(text.device) for key in ("input_ids", "attention_mask"))
    states = text(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states[-2]
    return [of_one[seen] for of_one, seen in zip(states, mask.bool(), strict=True)]


def _loss_of(
    transformer: Any,
    text: Any,
    alignment: Alignment,
    tokenizer: CLIPTokenizer,
    latents: Tensor,
    scenes: Sequence[Scene],
    fit: Fit,
    settings: Settings,
) -> LossAt:
    """Rectified flow with logit-normal times (arXiv 2403.03206), and the alignment; one caption in ten is empty, so
    that classifier-free guidance has its other half."""
    size, device = fit.plan.batch_size, settings.device
    pictures_of = load_pictures(settings)

    def loss_at(batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rng = python_stream(settings.seed, "flow, captions", batch)
        index, z, noise, spread, prompts = noisy_batch(latents, scenes, rng, size, generator)
        sigma = torch.sigmoid(torch.special.ndtri(spread.clamp(1e-4, 1 - 1e-4)))
        noisy = torch.lerp(z, noise, sigma[:, None, None, None]).to(device)
        with fit.runtime.autocast():
            states = states_of(text, tokenizer, prompts)
            pictures = list(noisy[:, :, None].unbind())
            # This transformer counts its time from the noise to the picture, and says the way back.
            said = transformer(pictures, 1 - sigma.to(device), states, return_dict=False)[0]
            apart = alignment(to_tensor(pictures_of[index]).to(device))
        towards = torch.stack([picture[:, 0] for picture in said]).float()
        flow = (towards - (z - noise).to(device)).square().mean()
        return flow + ALIGNMENT * apart, {"flow": flow.detach(), "apart": apart.detach()}

    return loss_at

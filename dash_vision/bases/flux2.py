"""FLUX.2: klein, which Qwen3 tells the prompt, and dev, which Mistral tells it, and which takes a guidance scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..files.readers import FLUX2, About
from .family import Conditions, Defaults
from .flow_transformer import USUAL, FlowTransformer, latents_of, presets

# Double blocks keep pictures and text apart; single blocks have one matrix for queries, keys, values and the MLP's
# first layer, and one for the attention's output and the MLP's second.
_DOUBLE = r"transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_SINGLE = r"single_transformer_blocks\.\d+\.attn\.(?:to_qkv_mlp_proj|to_out)"
_MLP = r"transformer_blocks\.\d+\.(?:ff|ff_context)\.linear_(?:in|out)"


class Flux2Klein(FlowTransformer):
    """Conditions: "prompt_embeds" [N, tokens, width].

    Latents are the VAE's in squares of 2 x 2, [N, 4 C, h / 2, w / 2], normalised by the statistics that the VAE holds:
    one of them is a token.
    """

    name = "FLUX.2 klein"
    pipeline_class = "Flux2KleinPipeline"
    defaults = USUAL
    targets = presets(f"{_DOUBLE}|{_SINGLE}", _MLP)
    units = ("Flux2TransformerBlock", "Flux2SingleTransformerBlock")
    layouts = ("diffusers", "kohya")
    other_programs = (
        "ComfyUI reads it too, since January 2026; `kohya/` has the same by the names of FLUX's own code, for older "
        "versions and kohya's scripts."
    )
    about_base: About = FLUX2

    # -- the base

    def note(self, pipeline: Any) -> str | None:
        """See Family."""
        if not self._distilled(pipeline):
            return None
        return (
            "this klein is distilled to a few steps, and training undoes that; train its base, "
            "black-forest-labs/FLUX.2-klein-base-4B or -9B, and draw with this one by --sample_with"
        )

    def suited(self, pipeline: Any) -> Defaults:
        """A distilled klein draws in 4 steps, without guidance."""
        if not self._distilled(pipeline):
            return self.defaults
        return replace(self.defaults, guidance_scale=1.0, num_inference_steps=4)

    def _distilled(self, pipeline: Any) -> bool:
        return bool(pipeline.config.is_distilled)

    def factor(self, pipeline: Any) -> int:
        """See Family."""
        return self.grid(pipeline)

    def channels(self, pipeline: Any) -> int:
        """See FlowTransformer."""
        return int(pipeline.transformer.config.in_channels)

    def mu(self, pipeline: Any, tokens: int) -> float:
        """The pipeline's own, which depends on the number of steps too; here on as many as the base draws in."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(tokens, self.suited(pipeline).num_inference_steps))

    def denoise(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """See Family."""
        prompt, (height, width) = conditions["prompt_embeds"], noisy.shape[2:]
        said = network(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=times,
            guidance=conditions.get("guidance"),
            encoder_hidden_states=prompt,
            img_ids=_positions(height, width, 1, noisy.device),
            txt_ids=_positions(1, 1, prompt.shape[1], noisy.device),
            return_dict=False,
        )[0]
        return said.transpose(1, 2).reshape(noisy.shape)

    # -- prompts

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device, length: int) -> Conditions:
        """See FlowTransformer."""
        return {"prompt_embeds": pipeline.encode_prompt(prompts, device=device, max_sequence_length=length)[0]}

    def prompt_text(self, pipeline: Any, prompt: str) -> tuple[Any, str, int]:
        """See FlowTransformer."""
        said = [{"role": "user", "content": prompt}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return pipeline.tokenizer, pipeline.tokenizer.apply_chat_template(said, **options), 0

    # -- pictures

    def encode_picture(self, pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See Family; the deviation is 0."""
        mode = pipeline.vae.encode(pixels).latent_dist.mode()
        latents = self._normalised(pipeline, mode)
        return latents, torch.zeros_like(latents)

    def _normalised(self, pipeline: Any, latents: Tensor) -> Tensor:
        """The VAE's latents -> the denoiser's."""
        mean, std = _statistics(pipeline.vae, latents)
        return (nn.functional.pixel_unshuffle(latents, 2) - mean) / std

    def decode(self, pipeline: Any, latents: Tensor) -> Tensor:
        """See Family."""
        mean, std = _statistics(pipeline.vae, latents)
        return pipeline.vae.decode(nn.functional.pixel_shuffle(latents * std + mean, 2)).sample

    def unpack(self, drawn: Tensor, pipeline: Any, size: tuple[int, int]) -> Tensor:
        """The pipeline gives the VAE's latents, ready to be decoded."""
        return self._normalised(pipeline, drawn)


class Flux2Dev(Flux2Klein):
    """FLUX.2-dev. Conditions: as klein, and "guidance" [N]."""

    name = "FLUX.2"
    pipeline_class = "Flux2Pipeline"
    guides_by_prompt = False

    def _distilled(self, pipeline: Any) -> bool:
        return False

    def prompt_text(self, pipeline: Any, prompt: str) -> tuple[Any, str, int]:
        """See FlowTransformer."""
        said = [
            {"role": "system", "content": [{"type": "text", "text": pipeline.system_message}]},
            {"role": "user", "content": [{"type": "text", "text": prompt}]},
        ]
        processor = pipeline.tokenizer
        return processor.tokenizer, processor.apply_chat_template([said], tokenize=False)[0], 0

    def unpack(self, drawn: Tensor, pipeline: Any, size: tuple[int, int]) -> Tensor:
        """This pipeline gives its tokens as they are."""
        grid = self.grid(pipeline)
        return latents_of(drawn, 1, (size[1] // grid, size[0] // grid))


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) [1, 4 C, 1, 1] of the VAE's latents in squares, by its batch normalisation."""
    mean, variance = vae.bn.running_mean.view(1, -1, 1, 1), vae.bn.running_var.view(1, -1, 1, 1)
    return mean.to(like), (variance + vae.config.batch_norm_eps).sqrt().to(like)


def _positions(height: int, width: int, tokens: int, device: torch.device) -> Tensor:
    """(0, row, column, number) of each token, [height * width * tokens, 4]."""
    ranges = [torch.arange(n, device=device) for n in (1, height, width, tokens)]
    return torch.cartesian_prod(*ranges)

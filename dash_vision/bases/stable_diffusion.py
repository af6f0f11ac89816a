"""Stable Diffusion 1.x and 2.x: a UNet under DDPM, one CLIP text encoder, its last hidden state."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..files.errors import InputError
from ..files.readers import SD1, SD2, UNKNOWN, About
from ..pictures.crops import CropInfo
from .clip import clip_tokens
from .devices import placed
from .family import (
    AS_THE_PIPELINE,
    CPU,
    Conditions,
    Defaults,
    Family,
    Generators,
    Marks,
    PromptOptions,
    Sampling,
    Target,
)
from .noise import DDPM, NoiseOptions

_ASKED = {
    "time_cond_proj_dim": "the scale of the guidance, as distilled models do",
    "class_embed_type": "a label beside the prompt, as upscalers and variations do",
    "num_class_embeds": "a label beside the prompt, as upscalers and variations do",
    "addition_embed_type": "other features beside the prompt",
    "encoder_hid_dim_type": "features of a picture",
}
_SPELLINGS = {"v": "v_prediction", "epsilon": "epsilon"}  # of ModelSpec
_OF_SD2 = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
_BIAS_OF_SD2 = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_PREDICTIONS = ("epsilon", "v_prediction")
_OF_FEW_STEPS = ("LCMScheduler", "TCDScheduler")  # samplers of models that are distilled to a few steps


class StableDiffusion(Family):
    """Conditions: "prompt_embeds" [N, tokens, width]."""

    name = "Stable Diffusion"
    pipeline_class = "StableDiffusionPipeline"
    denoiser = "unet"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    single_files = True
    trained_encoders: tuple[str, ...] = ("text_encoder",)
    light_text_encoders = True
    frozen_text = ""
    defaults = Defaults(
        learning_rate=1e-4,
        rank=4,
        max_train_steps=500,
        train_batch_size=1,
        guidance_scale=7.5,
        num_inference_steps=30,
    )
    targets: Mapping[str, Target] = {"attention": "unet-attention", "cross-attention": "unet-cross-attention"}
    default_target = "attention"
    units = ("BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer")
    layouts = ("diffusers", "kohya")
    other_programs = "`kohya/` has the same for ComfyUI and A1111."
    # Inputs of the UNet by its setting that asks for them, with the values that this family serves.
    gives: Mapping[str, tuple[str | None, ...]] = {
        "time_cond_proj_dim": (None,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None,),
        "encoder_hid_dim_type": (None, "text_proj"),
    }

    # -- loading

    def owns(self, keys: Collection[str]) -> bool:
        """See Family."""
        return any(key.startswith("cond_stage_model.") for key in keys)

    def loading_options(self) -> dict[str, Any]:
        """No part that looks at pictures: none is of use here, and some copies lack them."""
        return {
            "safety_checker": None,
            "feature_extractor": None,
            "image_encoder": None,
            "requires_safety_checker": False,
        }

    def check(self, name: str, pipeline: Any) -> None:
        """See Family."""
        for part in self.text_encoders:
            self._check_text(
                name, getattr(pipeline, part), getattr(pipeline, part.replace("text_encoder", "tokenizer"))
            )
        self._check_denoiser(name, pipeline)
        ddpm = hasattr(pipeline.scheduler, "alphas_cumprod")
        if not ddpm or getattr(pipeline.vae.config, "latents_mean", None) is not None:
            raise InputError(
                f"the base {name} has a noise process of its own ({type(pipeline.scheduler).__name__}); dash-vision "
                "trains SD 1.x, 2.x and SDXL as they were published"
            )
        config = pipeline.scheduler.config
        if config.get("timestep_type", "discrete") != "discrete" or config.get("use_flow_sigmas"):
            raise InputError(
                f"the base {name} has a noise process of its own: its {type(pipeline.scheduler).__name__} tells the "
                "UNet noise levels instead of DDPM's times, as EDM and flow matching do, which is not trained here"
            )
        prediction = str(config.prediction_type)
        if prediction not in _PREDICTIONS:
            raise InputError(
                f"the base {name} predicts {prediction!r}; dash-vision trains bases that predict epsilon or "
                "v_prediction"
            )

    @staticmethod
    def _check_text(name: str, encoder: Any, tokenizer: Any) -> None:
        """Raises InputError where a text encoder or its tokenizer is missing: a tokenizer without its files loads as
        one that knows no word."""
        if encoder is None or tokenizer is None:
            raise InputError(
                f"the base {name} lacks a text encoder or its tokenizer; give a base that has all its parts"
            )
        if not hasattr(encoder.config, "max_position_embeddings"):
            raise InputError(
                f"the base {name} has a {type(encoder).__name__} as its text encoder; dash-vision trains SD 1.x, 2.x "
                "and SDXL with CLIP's"
            )
        words, known = len(tokenizer.get_vocab()), int(encoder.config.vocab_size)
        tokens, read = int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings)
        if words < known // 2 or tokens > read:
            raise InputError(
                f"a tokenizer of the base {name} has {words} words and prompts of up to {tokens:.2g} tokens, its text "
                f"encoder {known} words and {read} tokens; fetch the tokenizer's files again"
            )

    def _check_denoiser(self, name: str, pipeline: Any) -> None:
        """Raises InputError where the UNet asks for an input that this family does not give, or answers otherwise."""
        unet, latents = pipeline.unet.config, int(pipeline.vae.config.latent_channels)
        if int(unet.in_channels) != latents:
            raise InputError(
                f"the base {name} takes {unet.in_channels} input channels, its VAE makes {latents}: an inpainting or "
                "depth model cannot be trained here; give a text-to-image base"
            )
        if int(unet.out_channels) != latents:
            raise InputError(
                f"the base {name} answers with {unet.out_channels} channels where its VAE has {latents}: it predicts "
                "more than the noise, which is not trained here; give a text-to-image base of SD 1.x, 2.x or SDXL"
            )
        if _side(unet.sample_size) < 1:
            raise InputError(
                f"the base {name} does not say at which size it was trained (the sample_size of its unet is "
                f"{unet.sample_size}); write the side of a square picture in latents, such as 64, into unet/config.json"
            )
        for key, given in self.gives.items():
            asked = getattr(unet, key, None)
            if asked not in given:
                raise InputError(
                    f"the base {name} asks for {_ASKED[key]} ({key} {asked}), which is not given here; give the "
                    "text-to-image base that it was made of"
                )
        width = unet.encoder_hid_dim if unet.encoder_hid_dim_type else unet.cross_attention_dim
        text = sum(int(getattr(pipeline, part).config.hidden_size) for part in self.text_encoders)
        if isinstance(width, int) and width != text:
            raise InputError(
                f"the UNet of the base {name} reads text of width {width}, its text encoders give {text}; they are not "
                "of one base"
            )

    def about(self, pipeline: Any) -> About:
        """See Family. The width of the text encoder tells 1.x from 2.x, and both from a base of another size."""
        kind = {768: SD1, 1024: SD2}.get(pipeline.unet.config.cross_attention_dim, UNKNOWN)
        return replace(kind, prediction=self._prediction(pipeline))

    def note(self, pipeline: Any) -> str | None:
        """See Family: consistency models are told their guidance or have a sampler of their own, Turbo is known by its
        name."""
        turbo = "turbo" in str(pipeline.config.get("_name_or_path", "")).lower()
        told = getattr(pipeline.unet.config, "time_cond_proj_dim", None) is not None
        if not (turbo or told or type(pipeline.scheduler).__name__ in _OF_FEW_STEPS):
            return None
        return (
            "this base is distilled to a few steps, and training undoes that; train the base that it was distilled "
            "from, and draw with this one by --sample_with"
        )

    @staticmethod
    def _prediction(pipeline: Any) -> str:
        """As ModelSpec calls it."""
        return "v" if pipeline.scheduler.config.prediction_type == "v_prediction" else "epsilon"

    def marks(self, file: Any, configured: bool) -> Marks:
        """See Family. The names of the marks are those that ComfyUI reads; sd-scripts' header counts too. Files of 2.x
        have none: the spread of one of their biases tells, by ComfyUI's rule."""
        keys, header = set(file.keys()), file.metadata() or {}
        strange = {"edm_mean", "edm_std", "edm_vpred.sigma_max"} & keys
        if strange:
            raise InputError(
                f"the file is marked {sorted(strange)[0]}: it has a noise process of its own, EDM; dash-vision trains "
                "SD 1.x, 2.x and SDXL with DDPM's"
            )
        prediction = _SPELLINGS.get(header.get("modelspec.prediction_type", ""))
        if "v_pred" in keys:
            prediction = "v_prediction"
        elif (
            prediction is None and not configured and _OF_SD2 in keys and file.get_slice(_OF_SD2).get_shape()[1] == 1024
        ):
            spread = file.get_tensor(_BIAS_OF_SD2).float().std(correction=0) if _BIAS_OF_SD2 in keys else 0
            prediction = "v_prediction" if spread > 0.09 else "epsilon"
        return Marks(prediction, "ztsnr" in keys)

    def set_prediction(self, pipeline: Any, prediction_type: str) -> None:
        """See Family."""
        scheduler = pipeline.scheduler
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=prediction_type)

    def set_zero_terminal_snr(self, pipeline: Any) -> None:
        """See Family. Sampling then begins at the last time, which no noise but only this prediction can start from."""
        from diffusers import EulerDiscreteScheduler

        scheduler = pipeline.scheduler
        if scheduler.config.prediction_type != "v_prediction":
            raise InputError(
                "--zero_terminal_snr is of bases that predict v, since pure noise says nothing about noise; add "
                "--prediction_type v_prediction, or leave it out"
            )
        kind = type(scheduler) if _takes_zero_snr(scheduler) else EulerDiscreteScheduler
        pipeline.scheduler = kind.from_config(
            scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )

    def serve_zero_terminal_snr(self, name: str, pipeline: Any) -> None:
        """See Family: PNDM and others read nothing of it in their configuration, and would begin below pure noise."""
        scheduler = pipeline.scheduler
        if not scheduler.config.get("rescale_betas_zero_snr") or _takes_zero_snr(scheduler):
            return
        if scheduler.config.prediction_type != "v_prediction":
            raise InputError(
                f"the base {name} is marked as trained up to pure noise (rescale_betas_zero_snr) and as predicting "
                f"{scheduler.config.prediction_type}, which pure noise says nothing about; add --prediction_type "
                "v_prediction, or take the mark out of its scheduler_config.json"
            )
        self.set_zero_terminal_snr(pipeline)

    # -- sizes

    def resolution(self, pipeline: Any) -> int:
        """See Family."""
        return _side(pipeline.unet.config.sample_size) * self.factor(pipeline)

    def factor(self, pipeline: Any) -> int:
        """See Family."""
        return int(2 ** (len(pipeline.vae.config.block_out_channels) - 1))

    def grid(self, pipeline: Any) -> int:
        """See Family."""
        return self.factor(pipeline) * int(2 ** (len(pipeline.unet.config.block_out_channels) - 1))

    def multiple(self, pipeline: Any) -> int:
        """See Family."""
        return 8

    def latent_shape(self, pipeline: Any, size: tuple[int, int]) -> tuple[int, int, int]:
        """See Family."""
        factor = self.factor(pipeline)
        return int(pipeline.unet.config.in_channels), size[1] // factor, size[0] // factor

    # -- the noise process

    def noise(self, pipeline: Any, options: NoiseOptions) -> DDPM:
        """See Family."""
        options.only("DDPM", ["snr_gamma"])
        return DDPM.of(pipeline.scheduler, options.snr_gamma)

    def denoise(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """See Family."""
        return network(noisy, times, encoder_hidden_states=conditions["prompt_embeds"]).sample

    # -- prompts

    def check_prompts(self, pipeline: Any, options: PromptOptions) -> None:
        """See Family: the layers of CLIP are all there is to choose."""
        if options.length is not None:
            raise InputError(
                f"--max_sequence_length: {self.name} always reads {pipeline.tokenizer.model_max_length} tokens of a "
                "prompt; leave it out"
            )
        if options.guidance is not None:
            raise InputError(f"--training_guidance_scale: {self.name} is told no guidance; leave it out")
        layers = min(int(getattr(pipeline, part).config.num_hidden_layers) for part in self.text_encoders)
        most = layers - 1 - self.skipped(AS_THE_PIPELINE)
        if options.clip_skip is not None and options.clip_skip > most:
            raise InputError(
                f"--clip_skip is {options.clip_skip}; this base takes 0 to {most}, since its text encoder has {layers} "
                "layers"
            )

    def skipped(self, options: PromptOptions) -> int:
        """Last layers of the text encoders whose states are not read."""
        return options.clip_skip or 0

    @torch.no_grad()
    def encode_prompts(
        self, pipeline: Any, prompts: Sequence[str], device: torch.device, options: PromptOptions = AS_THE_PIPELINE
    ) -> dict[str, Conditions]:
        """See Family."""
        encoders = [getattr(pipeline, name) for name in self.text_encoders]
        result = {}
        with placed(encoders, device):
            for prompt in dict.fromkeys(prompts):
                conditions = self._encode(pipeline, prompt, device, options)
                result[prompt] = {key: value.float().cpu() for key, value in conditions.items()}
        return result

    def _encode(self, pipeline: Any, prompt: str, device: torch.device, options: PromptOptions) -> Conditions:
        """The pipeline's own encoding of a prompt. With layers of CLIP left out it would ask the text encoder for a
        part that transformers 5 does not have."""
        if self.skipped(options):
            ids = [i.to(device) for i in self.tokenize(pipeline, [prompt])]
            return self.encode_tokens([pipeline.text_encoder], ids, options)
        return {"prompt_embeds": pipeline.encode_prompt([prompt], device, 1, False)[0]}

    def left_out(self, pipeline: Any, prompt: str, options: PromptOptions = AS_THE_PIPELINE) -> str:
        """See Family."""
        tokenizer = pipeline.tokenizer
        ids = tokenizer(pipeline.maybe_convert_prompt(prompt, tokenizer), truncation=False, verbose=False).input_ids
        return str(tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])).strip()

    def picture_conditions(self, infos: Sequence[CropInfo], size: tuple[int, int]) -> Conditions:
        """Nothing."""
        return {}

    # -- trained text encoders

    def tokenize(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        device: torch.device = CPU,
        options: PromptOptions = AS_THE_PIPELINE,
    ) -> list[Tensor]:
        """See Family."""
        return [clip_tokens(pipeline, name, prompts) for name in self.text_encoders]

    def encode_tokens(
        self, encoders: Sequence[nn.Module], ids: Sequence[Tensor], options: PromptOptions = AS_THE_PIPELINE
    ) -> Conditions:
        """See Family."""
        (encoder,), skipped = encoders, self.skipped(options)
        if not skipped:
            return {"prompt_embeds": encoder(*ids[0].unbind(1))[0]}
        states = encoder(*ids[0].unbind(1), output_hidden_states=True).hidden_states
        inner: Any = getattr(encoder, "module", encoder)  # of DistributedDataParallel
        return {"prompt_embeds": getattr(inner, "text_model", inner).final_layer_norm(states[-1 - skipped])}

    def text_target(self, name: str, encoder: Any, options: PromptOptions = AS_THE_PIPELINE) -> Target:
        """All but the last layers, which are left out: they would never get a gradient, and DDP would wait for one."""
        return _first_layers(int(encoder.config.num_hidden_layers) - self.skipped(options), encoder)

    # -- pictures

    def encode_picture(self, pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See Family."""
        vae = pipeline.vae
        distribution = vae.encode(pixels).latent_dist
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        mean = (distribution.mean - shift) * vae.config.scaling_factor
        return mean, distribution.std * vae.config.scaling_factor

    def decode(self, pipeline: Any, latents: Tensor) -> Tensor:
        """See Family."""
        vae = pipeline.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return vae.decode(latents / vae.config.scaling_factor + shift).sample

    # -- the base's own sampler

    def sampler_inputs(
        self, pipeline: Any, prompts: Sequence[str], device: torch.device, options: PromptOptions = AS_THE_PIPELINE
    ) -> Conditions:
        """See Family."""
        with_prompt, without = pipeline.encode_prompt(list(prompts), device, 1, True)
        if self.skipped(options):  # of prompts alone, as in the pipeline
            encoded = [self._encode(pipeline, prompt, device, options)["prompt_embeds"] for prompt in prompts]
            with_prompt = torch.cat(encoded).to(with_prompt.dtype)
        return {"prompt_embeds": with_prompt, "negative_prompt_embeds": without}

    def sample(
        self, pipeline: Any, inputs: Mapping[str, Any], noise: Tensor, how: Sampling, generator: Generators
    ) -> Tensor:
        """See Family."""
        return pipeline(
            **inputs,
            width=how.size[0],
            height=how.size[1],
            num_inference_steps=how.steps,
            guidance_scale=how.guidance,
            latents=noise,
            generator=generator,
            output_type="latent",
        ).images


def _side(size: Any) -> int:
    """The side of the square that a configuration states as a number or as two; 0 where it states none."""
    first, *others = size if isinstance(size, list | tuple) and size else [size]
    alike = isinstance(first, int) and all(other == first for other in others)
    return int(first) if alike else 0


def _takes_zero_snr(scheduler: Any) -> bool:
    """Whether a sampler has a setting for a terminal signal-to-noise ratio of zero."""
    return "rescale_betas_zero_snr" in inspect.signature(type(scheduler).__init__).parameters


def _first_layers(count: int, encoder: Any) -> Target:
    """DashConfig's target for the attention of the first `count` layers of a CLIP text encoder."""
    if count == int(encoder.config.num_hidden_layers):
        return "clip-text"
    numbers = "|".join(map(str, range(count)))
    return rf"(?:.*\.)?layers\.(?:{numbers})\.self_attn\.(?:q_proj|k_proj|v_proj|out_proj)"

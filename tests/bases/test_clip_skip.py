"""--clip_skip: the layer of CLIP that is read, counted as diffusers' pipelines do."""

import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from dash_vision.bases.family import PromptOptions
from dash_vision.bases.loading import load_base
from dash_vision.core.targets import find_targets
from dash_vision.files.errors import InputError
from tests.support.bases import text_config

CPU = torch.device("cpu")
PROMPT = "a photo of sks cat"
LAYERS = 4


@pytest.fixture(params=["sd", "sdxl"])
def base(bases, request):
    """With text encoders of four layers."""
    base = load_base(str(bases / request.param))
    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    for name, kind in zip(base.family.text_encoders, kinds, strict=False):
        config = text_config(base.pipeline.tokenizer, getattr(base.pipeline, name).config.hidden_size)
        config.num_hidden_layers = LAYERS
        base.pipeline.register_modules(**{name: kind(config).eval()})
    return base


def states_of(base, skip):
    """As diffusers' pipelines do: SDXL leaves out the last layer anyway, and norms nothing."""
    xl, found = base.family.name == "Stable Diffusion XL", []
    for encoder in base.text_encoders():
        ids = base.pipeline.tokenizer([PROMPT], padding="max_length", return_tensors="pt").input_ids
        states = encoder(ids, output_hidden_states=True).hidden_states
        inner = getattr(encoder, "text_model", encoder)
        found.append(states[-(skip + 2)] if xl else inner.final_layer_norm(states[-(skip + 1)]))
    return torch.cat(found, dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_conditions_are_of_the_layer_that_diffusers_reads(base, skip):
    family, pipeline, options = base.family, base.pipeline, PromptOptions(clip_skip=skip)
    expected = states_of(base, skip)
    trained = family.encode_tokens(base.text_encoders(), family.tokenize(pipeline, [PROMPT]), options)
    drawn = family.sampler_inputs(pipeline, [PROMPT, "a dog"], CPU, options)
    encoded = family.encode_prompts(pipeline, [PROMPT], CPU, options)[PROMPT]
    for found in (trained["prompt_embeds"], encoded["prompt_embeds"], drawn["prompt_embeds"][:1]):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    plain = family.sampler_inputs(pipeline, [PROMPT, "a dog"], CPU)
    assert torch.equal(drawn["negative_prompt_embeds"], plain["negative_prompt_embeds"])
    assert torch.equal(drawn["prompt_embeds"], plain["prompt_embeds"]) == (skip == 0)


def test_layers_that_are_left_out_are_not_adapted(base):
    options, last = PromptOptions(clip_skip=1), LAYERS - 1 - ("xl" in base.family.name.lower())
    target = base.family.text_target("text_encoder", base.pipeline.text_encoder, options)
    layers = {name.split("layers.")[1].split(".")[0] for name in find_targets(base.pipeline.text_encoder, target)}
    assert layers == {str(number) for number in range(last)}


def test_more_layers_than_there_are_is_refused(base):
    most = LAYERS - 1 - ("xl" in base.family.name.lower())
    base.family.check_prompts(base.pipeline, PromptOptions(clip_skip=most))
    with pytest.raises(InputError, match=f"--clip_skip is {most + 1}; this base takes 0 to {most}, since"):
        base.family.check_prompts(base.pipeline, PromptOptions(clip_skip=most + 1))


def test_a_base_without_clip_of_its_own_refuses_it(tiny):
    with pytest.raises(InputError, match=r"--clip_skip is for Stable Diffusion 1\.x, 2\.x and SDXL"):
        load_base(str(tiny("z-image")), clip_skip=1)

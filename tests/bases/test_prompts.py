"""Prompts are encoded by the pipeline itself, and as it does where its text encoders are trained."""

import json
import shutil

import pytest
import torch

from dash_vision.bases.loading import load_base

CPU = torch.device("cpu")
PROMPTS = ["a photo of <toy>", "a photo of cat", "<toy> and <toy> on the beach, in the snow, on the grass, by the sea"]


@pytest.fixture(scope="module")
def inverted(bases, tmp_path_factory):
    """Folders of bases that carry a textual inversion of two vectors."""
    root = tmp_path_factory.mktemp("inverted")
    for base in ("sd", "sdxl"):
        pipeline = load_base(str(bases / base)).pipeline
        torch.manual_seed(1)
        for end in ("", "_2") if base == "sdxl" else ("",):
            encoder, tokenizer = getattr(pipeline, f"text_encoder{end}"), getattr(pipeline, f"tokenizer{end}")
            vectors = torch.randn(2, encoder.config.hidden_size)
            options = {"tokenizer": tokenizer, "text_encoder": encoder} if base == "sdxl" else {}
            pipeline.load_textual_inversion({"<toy>": vectors}, token="<toy>", **options)
        pipeline.save_pretrained(root / base)
    masked = shutil.copytree(root / "sd", root / "masked")
    file = masked / "text_encoder/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_attention_mask": True}))
    return root


def stock(base, prompt):
    """What the pipeline tells the denoiser of a prompt."""
    if base.pipeline.components.get("text_encoder_2") is None:
        return {"prompt_embeds": base.pipeline.encode_prompt([prompt], CPU, 1, False)[0]}
    states = base.pipeline.encode_prompt([prompt], device=CPU, do_classifier_free_guidance=False)
    return {"prompt_embeds": states[0], "text_embeds": states[2]}


@pytest.mark.parametrize("name", ["sd", "sdxl", "masked"])
def test_conditions_are_the_pipelines_own_to_the_last_bit(inverted, name):
    base = load_base(str(inverted / name))
    encoded = base.family.encode_prompts(base.pipeline, PROMPTS, CPU)
    tokens = base.family.tokenize(base.pipeline, PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        expected = stock(base, prompt)
        rows = [part[number : number + 1] for part in tokens]
        trained = base.family.encode_tokens(base.text_encoders(), rows)
        assert encoded[prompt].keys() == trained.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(encoded[prompt][key], value), (prompt, key)
            assert torch.equal(trained[key], value), (prompt, key)


def test_a_word_of_a_textual_inversion_counts_as_often_as_it_has_vectors(inverted):
    base = load_base(str(inverted / "sd"))
    longest = base.pipeline.tokenizer.model_max_length - 2  # without its two marks
    words = ["cat"] * (longest - 1)
    assert base.family.left_out(base.pipeline, " ".join([*words, "dog"])) == ""
    assert base.family.left_out(base.pipeline, " ".join([*words, "<toy>"])) != ""


def test_a_mask_of_attention_changes_what_is_said(inverted):
    """Without it the test above would compare the same numbers."""
    plain, masked = (load_base(str(inverted / name)) for name in ("sd", "masked"))
    prompt = PROMPTS[1]
    assert not torch.equal(stock(plain, prompt)["prompt_embeds"], stock(masked, prompt)["prompt_embeds"])

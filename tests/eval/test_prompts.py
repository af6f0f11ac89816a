"""The protocol's prompts."""

from transformers import PreTrainedTokenizerFast

from dash_vision.miniature import pipeline_path
from eval.subject.prompts import PROMPT_LISTS, prompt_list


def test_the_protocol_has_25_prompts_of_each_kind():
    for prompts in PROMPT_LISTS.values():
        assert len(set(prompts)) == 25
        assert all(prompt.count("{}") == 1 for prompt in prompts)
    objects, live = PROMPT_LISTS["object"], PROMPT_LISTS["live"]
    assert (objects[:10], objects[-5:]) == (live[:10], live[-5:])
    assert objects[16].format("sks clock") == "a sks clock on top of a mirror"
    assert live[13].format("sks dog") == "a sks dog wearing a black top hat and a monocle"
    assert live[-1].format("sks dog") == "a cube shaped sks dog"
    assert [prompt_list(c) for c in ("cat", "Fluffy Dog", "dog toy", "")] == ["live", "live", "object", "object"]


def test_the_miniature_knows_every_word_of_the_live_prompts():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(pipeline_path() / "tokenizer")
    for prompt in PROMPT_LISTS["live"] + PROMPT_LISTS["object"]:
        assert tokenizer.unk_token not in tokenizer.tokenize(prompt.format("cat"))

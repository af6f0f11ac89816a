"""Prompts and class names that are derived from folders."""

from dataclasses import replace

import pytest

from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.prompts import (
    Prompts,
    class_name,
    default_validation_prompts,
    derive_prompts,
    note_unsaid,
)
from dash_vision.files.errors import InputError


@pytest.mark.parametrize(
    ("name", "kind"), [("cat", "cat"), ("my_dogs-2", "my dogs"), ("../x/Red Vase/", "red vase"), ("123", "")]
)
def test_class_names_come_from_folders(name, kind):
    assert class_name(name) == kind


def test_prompts():
    prompts = derive_prompts(DreamBoothConfig(instance_data_dir="some/cat"))
    assert prompts == Prompts("a photo of sks cat", "a photo of cat", "sks cat")
    assert default_validation_prompts(prompts)[1] == "a sks cat in the snow"
    own = derive_prompts(DreamBoothConfig(instance_data_dir="cat", instance_prompt="a photo of a sks dog"))
    assert default_validation_prompts(own)[2] == "a sks dog on the beach"
    assert own.class_ == "a photo of a dog"
    free = derive_prompts(DreamBoothConfig(instance_data_dir="cat", instance_prompt="rainy window"))
    assert default_validation_prompts(free) == ["rainy window"]
    with pytest.raises(InputError, match="--instance_prompt"):
        derive_prompts(DreamBoothConfig(instance_data_dir="2024"))


@pytest.mark.parametrize("prompt", ["sks", "a photo of sks", "sks,", "a photo of a sks"])
@pytest.mark.parametrize("of_class", ["preserve_class", "with_prior_preservation"])
def test_a_prompt_that_is_the_rare_word_alone_has_no_class_to_preserve(prompt, of_class):
    config = DreamBoothConfig(instance_data_dir="cat", instance_prompt=prompt, **{of_class: True})
    with pytest.raises(InputError, match="give --class_prompt"):
        derive_prompts(config)
    given = replace(config, class_prompt="a photo of a cat")
    assert derive_prompts(given).class_ == "a photo of a cat"


def test_a_caption_that_is_the_rare_word_alone_is_of_the_class_prompt():
    prompts = Prompts("a photo of sks cat", "a photo of cat")
    assert [prompts.of_class(caption) for caption in ("sks", "a photo of sks", "sks on a mat")] == [
        "a photo of cat",
        "a photo of cat",
        "on a mat",
    ]


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        (["a cat on a mat", "a cat"], True),
        (["a cat on a mat", "a SKS cat"], False),
        (["a cat on a mat", None], False),
    ],
)
def test_captions_that_never_name_the_subject_are_said(captions, said):
    prompts = derive_prompts(DreamBoothConfig(instance_data_dir="some/cat"))
    assert bool(note_unsaid(prompts, captions)) == said

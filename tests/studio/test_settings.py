"""The form of a new run against the command line."""

import dataclasses
import shlex

import pytest

from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.files.errors import InputError
from dash_vision.runs.settings import make_parser, parse
from dash_vision.studio.bases import HUB, choices
from dash_vision.studio.settings import form_fields, read_form
from tests.support.paths import ROOT
from tests.support.pictures import save_pictures

FORM = {"kind": "cat", "subject": "sks", "base": "miniature"}
# What the page decides itself, and what would send something away.
LEFT_OUT = {
    *("instance_data_dir", "output_dir", "instance_prompt", "class_prompt", "pretrained_model_name_or_path"),
    *("dataset_name", "dataset_config_name", "image_column", "caption_column", "resume_from_checkpoint", "overwrite"),
    *("push_to_hub", "hub_model_id", "hub_token"),
}


def read(tmp_path, **form):
    return read_form({**FORM, **form}, tmp_path / "cat", tmp_path / "out", [tmp_path])


def test_the_form_has_every_setting_with_the_words_of_help():
    shown = "".join(make_parser(DreamBoothConfig, "", "").format_help().split())  # its lines break at hyphens too
    fields = form_fields()
    assert {f.name for f in fields} | LEFT_OUT == {f.name for f in dataclasses.fields(DreamBoothConfig)}
    assert not {f.name for f in fields} & LEFT_OUT
    for field in fields:
        assert "".join(field.help.split()) in shown, field.name
        assert "".join(f"(default: {field.default})".split()) in shown, field.name


def test_the_page_has_a_field_of_every_setting(page):
    text = page.text("/new")
    for field in form_fields():
        assert text.count(f'name="{field.name}"') == 1, field.name


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"max_train_steps": "20", "dash_k": "0", "learning_rate": "1e-3"},
        {"with_prior_preservation": "true", "num_class_images": "7", "use_captions": "false", "max_grad_norm": "none"},
        {"validation_prompt": "a {} in the snow\na {} on a mat", "lora_target": "to_q\nto_k", "optimizer": "prodigy"},
        {"subject": 'o\'hara  "x"', "kind": "big $HOME `dog`; rm -rf", "seed": "3"},
        {"base": "owner/name.v2", "mixed_precision": "BF16", "logit_mean": "-1.5"},
    ],
)
def test_the_command_that_is_shown_gives_the_settings_of_the_form(tmp_path, form):
    asked = read(tmp_path, **form)
    words = shlex.split(shlex.join(asked.words))  # as a shell takes what is copied
    again = parse(DreamBoothConfig, "", "", words)
    assert again.to_dict() == asked.config.to_dict()


def test_what_is_empty_or_the_default_is_no_word_of_the_command(tmp_path):
    defaults = {f.name: f.default for f in dataclasses.fields(DreamBoothConfig) if f.name not in LEFT_OUT}
    plain = {name: str(value) for name, value in defaults.items() if isinstance(value, int | float | str)}
    assert len(plain) > 30
    assert read(tmp_path, **plain).words == read(tmp_path).words
    assert read(tmp_path, **dict.fromkeys(defaults, "  ")).words == read(tmp_path).words


@pytest.mark.parametrize(
    ("form", "flag"),
    [
        ({"max_train_steps": "many"}, "max_train_steps"),
        ({"max_train_steps": "0"}, "max_train_steps"),
        ({"rank": "0", "dash_k": "0"}, "rank"),
        ({"lr_scheduler": "none such"}, "lr_scheduler"),
        ({"prelaunch_steps": "20", "max_train_steps": "20"}, "prelaunch_steps"),
        ({"validation_prompt": "/etc/passwd.txt"}, "validation_prompt"),
        ({"validation_prompt": "--overwrite"}, "validation_prompt"),
        ({"class_data_dir": "/etc", "with_prior_preservation": "true"}, "class_data_dir"),
        ({"latent_cache_dir": "{}/../../elsewhere"}, "latent_cache_dir"),
        ({"cache_dir": "~"}, "cache_dir"),
        ({"sample_with": "/etc"}, "sample_with"),
        ({"single_file_config": "../x/y"}, "single_file_config"),
        ({"logging_dir": "../../logs"}, "logging_dir"),
        ({"variant": "--overwrite"}, "variant"),
    ],
)
def test_what_the_command_would_refuse_and_what_leads_elsewhere_is_said_at_its_field(page, tmp_path, form, flag):
    form = {name: value.format(page.runs) for name, value in form.items()}
    status, answer = page.send("/check", **{**FORM, **form})
    assert status == 400
    assert answer["flag"] == flag, answer
    with pytest.raises(InputError):
        read(tmp_path, **form)


@pytest.mark.parametrize(
    "base", ["", "/etc", "..", "../..", "owner/..", "owner/name/more", "https://x/y", "tests/support", "-x/y"]
)
def test_a_base_is_a_hub_id_or_lies_in_a_given_folder(page, base, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, answer = page.send("/check", **{**FORM, "base": base})
    assert (status, "no hub id" in answer["error"]) == (400, True)
    assert page.send("/check", **{**FORM, "base": "owner/name"})[0] == 200
    (page.bases / "mine").mkdir()
    assert page.send("/check", **{**FORM, "base": str(page.bases / "mine")})[0] == 200


def test_bases_of_the_folders_are_offered(page):
    (page.bases / "sd" / "deep").mkdir(parents=True)
    (page.bases / "sd" / "deep" / "model_index.json").write_text("{}")
    (page.bases / "one.safetensors").write_bytes(bytes(5_000_000))
    (page.bases / "notes.txt").write_text("")
    local = [choice for choice in choices([page.bases]) if "this machine" in choice.size]
    assert [choice.name for choice in local] == ["one.safetensors", "sd/deep"]
    text = page.text("/new")
    for choice in choices([page.bases]):
        assert f'value="{choice.value}"' in text


def test_the_hubs_bases_are_those_of_the_document():
    text = (ROOT / "docs" / "bases.md").read_text(encoding="utf-8")
    for name, size, licence, side, steps in HUB:
        assert name in text
        rows = [line for line in text.splitlines() if line.startswith("|") and size in line and licence in line]
        assert any(str(side) in row and f"| {steps} |" in row for row in rows), name


def test_prompts_follow_from_the_words(page):
    save_pictures(page.pictures / "cat")
    status, answer = page.send("/check", **{**FORM, "pictures": "cat", "subject": "ohwx", "kind": "dog"})
    assert status == 200
    assert (answer["instance"], answer["class"]) == ("a photo of ohwx dog", "a photo of dog")
    assert "a ohwx dog in the snow" in answer["prompts"]
    assert page.send("/check", **{**FORM, "kind": " "})[1]["error"].startswith("the class is empty")

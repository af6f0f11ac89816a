"""Settings as people type them: epochs, repeats, warm-up, short runs, prompts in files, a run.json as --config."""

import json
import subprocess
import sys

import pytest
import torch

import train_dreambooth
from dash_vision.bases.loading import load_base
from dash_vision.bases.sampling import Sampling, sample
from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.latents import Example, Order, View, draw_batch
from dash_vision.diffusion.plan import make_plan
from dash_vision.diffusion.prompts import derive_prompts
from dash_vision.files.errors import InputError
from dash_vision.pictures.crops import CropInfo
from dash_vision.runs.settings import parse
from tests.support.dreambooth import settings, train
from tests.support.paths import ROOT
from tests.support.scripts import dreambooth


@pytest.fixture(scope="module")
def base(bases):
    return load_base(str(bases / "sd"))


def plan(base, bases, pictures=5, processes=1, **changes):
    config = settings(bases, "out", **{"max_train_steps": None, "prelaunch_steps": None, **changes})
    return make_plan(config, derive_prompts(config), base, pictures, processes)


def test_epochs_count_all_pictures_as_often_as_they_repeat(base, bases):
    # 5 pictures, 3 times each, by 2 at once: 15 / 2 are 8 steps, the last one not full.
    made = plan(base, bases, num_train_epochs=20, repeats=3, validation_epochs=4)
    assert (made.epoch_steps, made.max_train_steps, made.validation_steps) == (8, 160, 32)
    assert "20 epochs of 8 steps each are 160 steps" in made.notes()
    made = plan(base, bases, processes=2, num_train_epochs=20, repeats=3, gradient_accumulation_steps=2)
    assert made.max_train_steps == 20 * 2  # 8 pictures a step


def test_steps_count_where_epochs_are_given_too(base, bases):
    made = plan(base, bases, num_train_epochs=20, max_train_steps=9, prelaunch_steps=2)
    assert made.max_train_steps == 9
    assert "--max_train_steps counts, and --num_train_epochs is left out beside it" in made.notes()


def test_a_short_run_launches_after_a_fifth_of_its_steps_unless_told_otherwise(base, bases):
    made = plan(base, bases, max_train_steps=50)
    assert made.prelaunch_steps == 10
    assert any("the dash comes after a fifth of them, 10" in note for note in made.notes())
    assert plan(base, bases, max_train_steps=100).prelaunch_steps == 20
    longer = plan(base, bases, max_train_steps=101)
    assert (longer.prelaunch_steps, longer.notes()) == (100, [])
    with pytest.raises(InputError, match="--prelaunch_steps 100 leaves nothing of --max_train_steps 50"):
        plan(base, bases, max_train_steps=50, prelaunch_steps=100)


def test_lengths_are_checked_before_a_base_is_there_where_they_are_given():
    with pytest.raises(InputError, match="--prelaunch_steps 9 leaves nothing"):
        DreamBoothConfig(instance_data_dir="x", max_train_steps=9, prelaunch_steps=9)
    with pytest.raises(InputError, match="--lr_warmup_steps 9 leaves nothing of --max_train_steps 9"):
        DreamBoothConfig(instance_data_dir="x", max_train_steps=9, lr_warmup_steps=9)


def test_a_warm_up_longer_than_the_bases_own_steps_is_refused(base, bases):
    with pytest.raises(InputError, match="--lr_warmup_steps 500 leaves nothing of --max_train_steps 500"):
        plan(base, bases, lr_warmup_steps=500)


def test_a_launch_while_the_rate_still_rises_is_said(base, bases):
    assert not plan(base, bases, lr_warmup_steps=99).notes()[1:]
    assert plan(base, bases, lr_warmup_steps=100).notes()[-1] == (
        "the learning rate still rises when the dash is launched: --lr_warmup_steps 100, --prelaunch_steps 100"
    )


def test_a_constant_rate_with_warm_up_is_the_schedule_of_that_name():
    config = DreamBoothConfig(instance_data_dir="x", lr_scheduler="constant", lr_warmup_steps=5)
    assert config.lr_scheduler == "constant_with_warmup"
    assert config.notes == ["--lr_scheduler constant with --lr_warmup_steps 5 is constant_with_warmup"]


def test_the_schedule_is_the_bases_own_unless_one_is_given(base, bases):
    assert plan(base, bases).lr_scheduler == "constant"
    assert plan(base, bases, lr_warmup_steps=5).lr_scheduler == "constant_with_warmup"
    assert plan(base, bases, lr_scheduler="linear").lr_scheduler == "linear"
    small = plan(load_base("miniature", without_weights=True), bases, lr_warmup_steps=5)
    assert small.lr_scheduler == small.arguments()["lr_scheduler"] == "cosine"
    assert "lr_scheduler cosine" in small.taken()
    assert small.identity()["max_train_steps"] == 1000  # another length would be another course
    assert "max_train_steps" not in plan(base, bases).identity()


def test_no_guidance_draws_what_guidance_1_draws(base):
    def drawn(guidance):
        how = Sampling(2, guidance, (16, 16))
        (picture,) = sample(base, ["a photo of sks cat"], 0, [0], how, torch.device("cpu"))
        return picture.tobytes()

    assert drawn(0) == drawn(1) != drawn(7.5)
    assert DreamBoothConfig(instance_data_dir="x", guidance_scale=0).guidance_scale == 0


def test_offset_noise_moves_all_of_a_channel_by_one_normal_number(base):
    view = View(torch.zeros(4, 3, 5), torch.zeros(4, 3, 5), CropInfo((3, 5), (0, 0)), (5, 3))
    examples = [Example("0", "p", (view,))]
    order, process = Order(examples, 500, 0, "x"), base.noise()
    plain = draw_batch(base, examples, order, 0, process)
    moved = draw_batch(base, examples, order, 0, process, noise_offset=0.5)
    difference = moved.noise - plain.noise
    assert torch.equal(moved.times, plain.times)
    torch.testing.assert_close(difference, difference[..., :1, :1].expand_as(difference), rtol=0, atol=1e-6)
    numbers = difference[..., 0, 0].flatten() / 0.5  # 2000 standard normal ones
    assert abs(numbers.mean()) < 4 / 2000**0.5
    assert abs(numbers.var() - 1) < 4 * (2 / 2000) ** 0.5


def test_a_text_file_stands_for_its_prompts(tmp_path, bases):
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog in snow \n", encoding="utf-8")
    words = ["--instance_data", "x", "--validation_prompt", str(tmp_path / "prompts.txt"), "a third one"]
    assert parse(DreamBoothConfig, "", "", words).validation_prompt == ["a cat", "a dog in snow", "a third one"]
    with pytest.raises(InputError, match="cannot read --validation_prompt"):
        DreamBoothConfig(instance_data_dir="x", validation_prompt=["none.txt"])
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        DreamBoothConfig(instance_data_dir="x", validation_prompt=[str(tmp_path / "prompts.txt")])


def test_choices_are_taken_in_any_capitals_and_yaml_may_say_no(tmp_path):
    (tmp_path / "a.yaml").write_text("instance_data: x\nmixed_precision: no\noptimizer: AdamW\n")
    config = parse(DreamBoothConfig, "", "", ["--config", str(tmp_path / "a.yaml"), "--lr_scheduler", "Cosine"])
    assert (config.mixed_precision, config.optimizer, config.lr_scheduler) == ("no", "adamw", "cosine")


def test_the_record_of_a_run_repeats_it(bases, tmp_path):
    more = ["--lr_warmup_steps", 2, "--mixed_precision", "no", "--random_flip"]
    assert dreambooth(bases, tmp_path / "out", *more) == 0
    record = str(tmp_path / "out/run.json")
    again = tmp_path / "again"
    assert train_dreambooth.main(["--config", record, "--output_dir", str(again / "out")]) == 0
    first, second = (folder / "dash_adapter.safetensors" for folder in (tmp_path / "out", again / "out"))
    assert first.read_bytes() == second.read_bytes()


def test_what_followed_from_another_setting_follows_again_when_a_record_is_given(bases, tmp_path):
    train(settings(bases, tmp_path / "out", max_train_steps=None, num_train_epochs=3, prelaunch_steps=2))
    record = str(tmp_path / "out/run.json")
    plain = parse(DreamBoothConfig, "", "", ["--config", record, "--dash_k", "0", "--learning_rate", "1e-3"])
    assert (plain.dash_lr, plain.num_train_epochs, plain.max_train_steps) == (None, 3, None)
    longer = parse(DreamBoothConfig, "", "", ["--config", record, "--max_train_steps", "50"])
    assert (longer.num_train_epochs, longer.max_train_steps) == (None, 50)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"kind": "vtab", "arguments": {}}, "is of a run of train_vtab.py"),
        ({"kind": "dreambooth", "arguments": {}}, "is no complete record"),
    ],
)
def test_records_of_something_else_are_refused(tmp_path, content, words, capsys):
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        parse(DreamBoothConfig, "", "", ["--config", str(tmp_path / "run.json")])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation_epochs": 2, "validation_steps": 3}, "say the same"),
        ({"caption_column": "text"}, "--caption_column does nothing without --dataset_name"),
        ({"hub_model_id": "me/cat"}, "--hub_model_id does nothing without --push_to_hub"),
        ({"dataset_name": "somewhere"}, "both name pictures"),
        ({"instance_data_dir": "", "dataset_name": "somewhere"}, "--dataset_name needs --instance_prompt"),
        ({"dash_lr": 0.0}, "--dash_lr 0 never moves the shifts"),
        ({"train_text_encoder": True, "text_encoder_lr": 0.0}, "--text_encoder_lr 0 trains no text encoder"),
        ({"with_prior_preservation": True, "prior_loss_weight": 0.0}, "--prior_loss_weight 0 leaves nothing"),
        ({"guidance_scale": -1.0}, "--guidance_scale is -1.0; it takes a number of 0 or more"),
    ],
)
def test_settings_that_leave_nothing_of_each_other_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        DreamBoothConfig(**{"instance_data_dir": "x", **changes})


def test_settings_that_make_no_difference_are_said():
    config = DreamBoothConfig(
        instance_data_dir="x",
        lr_scheduler="cosine",
        lr_num_cycles=3,
        lr_power=2.0,
        center_crop=True,
        num_crop_variants=5,
    )
    assert [note.partition(" ")[0] for note in config.notes] == ["--lr_num_cycles", "--lr_power", "--num_crop_variants"]
    usual = DreamBoothConfig(instance_data_dir="x", lr_scheduler="polynomial", lr_power=2.0, center_crop=True)
    assert usual.notes == []


def test_a_token_is_in_no_record():
    config = DreamBoothConfig(instance_data_dir="x", push_to_hub=True, hub_token="hf_secret")
    assert "hf_secret" not in json.dumps(config.to_dict())


def test_the_hub_library_keeps_what_it_fetches_in_the_folder_given(tmp_path):
    code = (
        "import sys\nfrom dash_vision.diffusion import command, early\n"
        "def look(config):\n    from huggingface_hub import constants\n"
        "    print(constants.HF_HUB_CACHE)\n    sys.exit()\n"
        "early.look = look\ncommand.main(['--instance_data', 'x', '--cache_dir', sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path), done.stderr


def test_lengths_on_the_miniature_are_checked_without_torch(bases):
    """Its own number of steps is 1000."""
    code = (
        "import sys, dash_vision.diffusion.early as e\nfrom dash_vision.diffusion.config import DreamBoothConfig as C\n"
    )
    code += "try:\n    e.look(C(instance_data_dir=sys.argv[1], output_dir='absent', prelaunch_steps=1000))\n"
    code += "except Exception as error:\n    print(error, 'torch' in sys.modules)"
    words = [sys.executable, "-c", code, str(bases / "cat")]
    said = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert said.startswith("--prelaunch_steps 1000 leaves nothing of --max_train_steps 1000")
    assert said.rstrip().endswith("False")


def test_a_sample_prompt_may_leave_a_place_for_the_subject(base, bases):
    made = plan(base, bases, validation_prompt=["a {} in the snow"], instance_prompt="a photo of sks cat")
    assert made.validation_prompts == ("a sks cat in the snow",)


def test_what_never_comes_in_the_run_is_said(base, bases):
    made = plan(base, bases, max_train_steps=50, save_lora_every=60, validation_epochs=20)
    assert made.notes()[-2:] == [
        "--save_lora_every 60 is longer than the run of 50 steps, so that nothing comes of it",
        "--validation_epochs 20 (60 steps) is longer than the run of 50 steps, so that nothing comes of it",
    ]
    made = plan(base, bases, max_train_steps=50, holdout="1", evaluate_every=60)
    assert made.notes()[-1] == (
        "--evaluate_every 60 is longer than the run of 50 steps, so that only its end is measured"
    )
    assert len(plan(base, bases, max_train_steps=150, save_lora_every=150, validation_steps=150).notes()) == 0
    with pytest.raises(InputError, match="--lr_num_cycles 60 is more than the 50 steps"):
        plan(base, bases, max_train_steps=50, lr_scheduler="cosine_with_restarts", lr_num_cycles=60)


@pytest.mark.parametrize("changes", [{"learning_rate": 1e-12}, {"max_grad_norm": 1e-16}])
def test_an_adapter_that_learned_next_to_nothing_is_said(bases, tmp_path, changes):
    lines = []
    train(settings(bases, tmp_path / "out", max_train_steps=5, **changes), lines)
    assert any("warning: the adapter of the unet is next to nothing, at most" in line for line in lines)


def test_a_run_of_few_steps_at_a_usual_rate_learned_something(bases, tmp_path):
    lines = []
    train(settings(bases, tmp_path / "out", max_train_steps=2, prelaunch_steps=1, learning_rate=1e-4), lines)
    assert not any("next to nothing" in line for line in lines)


def test_prodigy_is_not_given_the_rate_of_adamw():
    with pytest.raises(InputError, match=r"--learning_rate is 0\.0001, which with --optimizer prodigy is a factor"):
        DreamBoothConfig(instance_data_dir="x", optimizer="prodigy", learning_rate=1e-4)

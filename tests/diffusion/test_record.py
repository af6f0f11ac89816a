"""run.json: what a DreamBooth run says of itself."""

import torch

from dash_vision.bases.loading import load_base
from dash_vision.diffusion.prompts import default_validation_prompts
from dash_vision.miniature import MINIATURE
from dash_vision.runs.record import read_record
from tests.support.dreambooth import prepare, settings, train


def test_the_record_reads_back_and_names_all_that_was_drawn(bases, tmp_path):
    changes = {"validation_prompt": [], "num_validation_images": 2, "max_train_steps": 5, "learning_rate": None}
    job = train(settings(bases, tmp_path / "out", **changes))
    record = read_record(tmp_path / "out" / "run.json")
    assert record.validation_prompts == default_validation_prompts(job.plan.prompts)
    assert (record.method, record.subject, record.steps, record.launch.step) == ("dash", "sks cat", 5, 4)
    assert record.arguments["learning_rate"] == job.base.defaults.learning_rate
    assert record.arguments.keys() == job.plan.settings.to_dict().keys()
    assert record.losses == [round(loss, 6) for loss in job.training.losses]


def test_the_record_loads_the_base_again_from_anywhere(bases, tmp_path, monkeypatch):
    monkeypatch.chdir(bases)
    changes = {"pretrained_model_name_or_path": "sd", "pretrained_vae_model_name_or_path": "sdxl/vae"}
    job = train(settings(bases, tmp_path / "out", prediction_type="v_prediction", **changes))
    monkeypatch.chdir(tmp_path)
    record = read_record(tmp_path / "out" / "run.json")
    assert record.base.name == "sd"
    again = load_base(**record.base.specification)
    assert again.noise().prediction == "v_prediction"
    vae = job.base.pipeline.vae.state_dict()
    assert all(torch.equal(value, vae[key]) for key, value in again.pipeline.vae.state_dict().items())
    assert load_base(str(bases / "sd")).noise().prediction == "epsilon"


def test_the_miniature_has_one_name_given_or_left_out(bases, tmp_path):
    runs = []
    for name in (None, MINIATURE):
        changes = {"pretrained_model_name_or_path": name, "learning_rate": None, "num_crop_variants": 1}
        runs.append(prepare(settings(bases, tmp_path / str(name), **changes)))
    assert {job.base.name for job in runs} == {"miniature"}
    assert {job.plan.learning_rate for job in runs} == {1e-3}
    assert load_base(**runs[0].base.specification).defaults == runs[1].base.defaults

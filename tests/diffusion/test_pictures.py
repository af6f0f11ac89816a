"""Buckets, captions, prior preservation, cached latents and crops in DreamBooth runs."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.dreambooth import prepare, settings, train
from tests.support.pictures import save_pictures


def test_buckets_captions_and_prior_preservation_train_together(bases, tmp_path):
    pictures = tmp_path / "dog"
    pictures.mkdir()
    for i, size in enumerate([(64, 64), (96, 48), (48, 96)]):
        Image.new("RGB", size, (40 * i, 90, 120)).save(pictures / f"{i}.png")
    (pictures / "1.txt").write_text("a wide sks dog")
    config = settings(
        bases,
        tmp_path / "out",
        instance_data_dir=str(pictures),
        aspect_ratio_buckets=True,
        resolution=32,
        with_prior_preservation=True,
        num_class_images=2,
        max_train_steps=4,
        prelaunch_steps=2,
    )
    lines = []
    run = train(config, lines)
    assert [e.prompt for e in run.material.examples] == ["a photo of sks dog", "a wide sks dog", "a photo of sks dog"]
    assert len({e.views[0].size for e in run.material.examples}) == 3
    assert {e.prompt for e in run.material.class_examples} == {"a photo of dog"}
    made = sorted((tmp_path / "out/class_images/generated").glob("*.png"))
    assert len(made) == 2
    assert any("generating 2" in line for line in lines)
    before = [np.asarray(Image.open(p)).astype(int) for p in made]
    made[0].unlink()
    config.overwrite = True
    lines = []
    prepare(config, lines)
    assert any("generating 1" in line for line in lines)
    # Picture 0 again, from its own noise; alone it may round otherwise than in a batch of two.
    for path, expected in zip(made, before, strict=True):
        assert np.abs(np.asarray(Image.open(path)) - expected).max() <= 1
    lines = []
    prepare(config, lines)
    assert any("none generated" in line for line in lines)


def test_latents_are_cached_on_disk(bases, tmp_path, monkeypatch):
    config = settings(bases, tmp_path / "out", latent_cache_dir=str(tmp_path / "cache"))
    first = prepare(config)
    first.close()
    files = list((tmp_path / "cache").iterdir())
    assert files
    monkeypatch.setattr("dash_vision.diffusion.latents.encode_picture", lambda *a: pytest.fail("encoded again"))
    again = prepare(config)
    again.close()
    monkeypatch.undo()
    for a, b in zip(first.material.examples, again.material.examples, strict=True):
        for x, y in zip(a.views, b.views, strict=True):
            assert torch.equal(x.mean, y.mean)
            assert torch.equal(x.std, y.std)
    files[0].write_bytes(b"cut short")
    repaired = prepare(config)
    assert torch.equal(repaired.material.examples[0].views[0].mean, first.material.examples[0].views[0].mean)


def test_what_a_long_prompt_loses_is_said(bases, tmp_path):
    lines = []
    prompt = "a photo of sks cat on top of green grass with sunflowers around it in the snow"
    config = settings(bases, tmp_path / "out", instance_prompt=prompt, validation_prompt=["a cat in the snow"])
    prepare(config, lines)
    (note,) = [line for line in lines if "longer than this base reads" in line]
    assert prompt in note
    # 12 places, less those of the start and the end: ten words are read, up to "grass".
    assert 'will not see: "with sunflowers around it in the snow"; --max_token_length' in note


def test_random_crops_are_cached_as_variants(bases, tmp_path):
    run = prepare(settings(bases, tmp_path / "out", num_crop_variants=3, resolution=16))
    assert {len(e.views) for e in run.material.examples} == {1}  # square pictures leave a square crop no room
    wide = tmp_path / "wide"
    wide.mkdir()
    Image.effect_noise((60, 20), 90).convert("RGB").save(wide / "a.png")
    run = prepare(settings(bases, tmp_path / "out2", instance_data_dir=str(wide), num_crop_variants=3))
    views = run.material.examples[0].views
    assert len(views) == 3
    assert len({v.info.crop_top_left for v in views}) == 3
    centre = prepare(
        settings(bases, tmp_path / "out3", instance_data_dir=str(wide), center_crop=True, random_flip=True)
    )
    assert len(centre.material.examples[0].views) == 2


def test_pictures_of_kohyas_folders_are_drawn_as_often_as_their_names_say(bases, tmp_path):
    save_pictures(tmp_path / "dogs" / "30_sks dog", count=1)
    save_pictures(tmp_path / "dogs" / "10_zwx cat", count=2)
    job = prepare(settings(bases, tmp_path / "out", instance_data_dir=str(tmp_path / "dogs")))
    examples = {example.name: example for example in job.material.examples}
    drawn = [job.material.examples[index].name for number in range(5) for index, _ in job.order.batch(number)]
    assert drawn.count("30_sks dog/0.png") == 6
    assert drawn.count("10_zwx cat/0.png") == drawn.count("10_zwx cat/1.png") == 2
    assert examples["30_sks dog/0.png"].prompt == "a photo of sks dog"
    assert examples["10_zwx cat/1.png"].prompt == "a photo of zwx cat"

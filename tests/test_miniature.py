"""The embedded miniature: its world, its words, its individuals, its training loop and the weights that ship."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dash_vision import miniature
from dash_vision.miniature.__main__ import main
from dash_vision.miniature.train.fit import Fit, Plan, orthogonalized
from dash_vision.miniature.train.report import nearest, retrieval
from dash_vision.miniature.world import scenes, subjects, vocabulary

# The DreamBooth protocol's wording (its prompts without "a {token} {class}").
PROTOCOL_PLACES = [
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
]
PROTOCOL_OUTFITS = [
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
]
PLAIN_CAT = scenes.Subject("cat", "orange", "white")
PLAIN_VASE = scenes.Subject("vase", "green", "white")

# cat/ holds the instance pictures of: individual --seed 16737 --kind cat --scene-seed 386 --size 256
EXAMPLE = {"seed": 16737, "kind": "cat"}
EXAMPLE_SCENES = 386
CAT = Path(__file__).parents[1] / "cat"


def pixels(scene: scenes.Scene, size: int = 64) -> np.ndarray:
    return np.asarray(scenes.render(scene, size)).astype(int)


def changed(one: scenes.Scene, other: scenes.Scene) -> float:
    """Share of the pixels that clearly differ."""
    return float((np.abs(pixels(one) - pixels(other)).max(2) > 24).mean())


# ------------------------------------------------------------------------------------------------------- the world


def test_a_seed_decides_the_whole_picture() -> None:
    first, again, other = (scenes.random_scene(Random(seed)) for seed in ("a", "a", "b"))
    assert first == again != other
    assert (pixels(first) == pixels(again)).all()
    assert changed(first, other) > 0.2


def test_a_scene_is_the_same_at_any_size() -> None:
    for seed in range(5):
        scene = scenes.random_scene(Random(seed))
        small = scenes.render(scene, 128).resize((64, 64), Image.Resampling.BOX)
        assert np.abs(np.asarray(small).astype(int) - pixels(scene)).mean() < 6


def test_every_place_of_the_protocol_is_drawn_and_named() -> None:
    assert list(scenes.SETTINGS) == PROTOCOL_PLACES
    seen = []
    for place in PROTOCOL_PLACES:
        scene = scenes.Scene(PLAIN_CAT, place)
        assert scenes.describe(scene, token="sks", colour=False) == f"a sks cat {place}"
        assert changed(scene, scenes.Scene(PLAIN_CAT)) > 0.3
        seen.append(pixels(scene).reshape(-1, 3).mean(0).round().tolist())
    assert len({tuple(mean) for mean in seen}) == len(PROTOCOL_PLACES)


@pytest.mark.parametrize("kind", scenes.LIVE)
def test_every_outfit_of_the_protocol_is_drawn_and_named(kind: str) -> None:
    assert list(scenes.OUTFITS) == PROTOCOL_OUTFITS
    subject = scenes.Subject(kind, "orange", "white")
    bare = scenes.Scene(subject, "in the snow")
    for outfit in PROTOCOL_OUTFITS:
        dressed = scenes.Scene(subject, "in the snow", outfit=outfit)
        assert scenes.describe(dressed, token="sks", colour=False) == f"a sks {kind} {outfit} in the snow"
        assert 0.01 < changed(dressed, bare) < 0.3  # the animal changes, the place does not


def test_the_properties_of_the_protocol_are_drawn_and_named() -> None:
    assert "red" in scenes.COLOURS
    assert "purple" in scenes.COLOURS
    for kind in scenes.KINDS:
        subject = scenes.Subject(kind, "green", "white")
        for look in ("shiny", "wet", "cube shaped"):
            scene = scenes.Scene(subject, look=look)
            assert scenes.describe(scene, token="sks", colour=False) == f"a {look} sks {kind}"
            assert changed(scene, scenes.Scene(subject)) > 0.01
    assert scenes.describe(scenes.Scene(scenes.Subject("vase", "red", "white")), token="sks") == "a red sks vase"


@pytest.mark.parametrize("colour", scenes.COLOURS)
def test_a_plain_subject_shows_its_colour(colour: str) -> None:
    wanted = np.array(scenes.COLOURS[colour])
    vase = scenes.Subject("vase", colour, "white" if colour != "white" else "red")
    found = np.abs(pixels(scenes.Scene(vase, "in the jungle")) - wanted).max(2) < 45  # the coat is lit from one side
    assert found.mean() > 0.03


@pytest.mark.parametrize(
    "make",
    [
        lambda: scenes.Scene(PLAIN_CAT, "on the moon"),
        lambda: scenes.Subject("unicorn", "red", "white"),
        lambda: scenes.Subject("cat", "mauve", "white"),
        lambda: scenes.Subject("cat", "red", "white", mark="anchor"),
        lambda: scenes.individual(1, "unicorn"),
        lambda: scenes.render(scenes.Scene(PLAIN_VASE, outfit="wearing a red hat")),
        lambda: scenes.render(scenes.Scene(PLAIN_VASE, look="sticky")),
        lambda: scenes.render(scenes.Scene(PLAIN_VASE), 4),
    ],
)
def test_what_the_world_does_not_know_is_refused_in_one_sentence(make) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+(known|live subjects wear|pixels)"):
        make()


# ------------------------------------------------------------------------------------------------------- the words


def test_captions_use_the_protocols_wording_and_known_words() -> None:
    words = set(vocabulary.world_words())
    rng = Random(0)
    starts, tokens, kinds = Counter[str](), Counter[str](), set()
    for _ in range(2000):
        scene = scenes.random_scene(rng)
        text = scenes.caption(scene, rng)
        assert set(text.lower().split()) <= words
        assert scene.subject.kind in text
        rest = text.removeprefix("a photo of ").removeprefix("a picture of ")
        assert rest.split()[0] in ("a", "an")
        starts[text[: len(text) - len(rest)]] += 1
        found = [token for token in scenes.RARE_TOKENS if f" {token} " in text]
        tokens.update(found)
        kinds.update((token, scene.subject.kind) for token in found)
    assert set(starts) == {"a photo of ", "a picture of ", ""}
    assert set(tokens) == set(scenes.RARE_TOKENS)
    assert 0.15 < sum(tokens.values()) / 2000 < 0.25
    assert len(kinds) > 0.8 * len(scenes.RARE_TOKENS) * len(scenes.KINDS)  # a rare token goes with everything


def test_a_caption_never_says_what_the_picture_does_not_show() -> None:
    rng = Random(1)
    for _ in range(500):
        scene = scenes.random_scene(rng)
        text = scenes.caption(scene, rng)
        assert all(place == scene.setting for place in scenes.SETTINGS if text.endswith(place))
        assert all(outfit == scene.outfit for outfit in scenes.OUTFITS if outfit in text)


def test_the_tokenizer_has_one_token_for_every_word_and_spells_the_rest(tmp_path: Path) -> None:
    tokenizer = vocabulary.write_tokenizer(tmp_path, 40)
    for word in vocabulary.world_words():
        ids = tokenizer(word).input_ids
        assert len(ids) == (5 if word == "two-tone" else 3), word  # start, the word, end; a hyphen is its own token
    for text in ("a photo of a sks cat in the snow", "zyzzyva über"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text
    assert vocabulary.write_tokenizer(tmp_path / "again", 40).get_vocab() == tokenizer.get_vocab()
    longest = max((f"a photo of a shiny red and white striped sks robot toy {p}" for p in PROTOCOL_PLACES), key=len)
    assert len(tokenizer(longest).input_ids) <= 40


# ------------------------------------------------------------------------------------------------- the individuals


def test_an_individual_keeps_its_features_and_training_never_shows_its_mix() -> None:
    for seed in range(30):
        one = scenes.individual(seed)
        assert one == scenes.individual(seed)
        assert scenes.is_reserved(one)
        assert one.mark is not None
        seen = scenes.instance_scenes(one, 5, seed)
        held = scenes.heldout_scenes(one, seen, 15, seed)
        assert {scene.subject for scene in seen + held} == {one}
        assert len({scene.setting for scene in seen}) == 5
        assert {scene.setting for scene in seen}.isdisjoint(scene.setting for scene in held)
        assert len({scene.pose for scene in seen + held}) == 20
    assert len({scenes.individual(seed) for seed in range(30)}) == 30
    rng = Random(2)
    assert not any(scenes.is_reserved(scenes.random_subject(rng)) for _ in range(3000))


def test_an_individuals_colours_are_in_every_picture_of_it() -> None:
    cat = scenes.individual(**EXAMPLE)
    collar, mark = (scenes.COLOURS[name] for name in (cat.collar, cat.mark_colour))
    for scene in scenes.heldout_scenes(cat, [], 20, 3):
        picture = pixels(scene, 256)
        for colour, least in ((collar, 150), (mark, 60), (subjects.GOLD, 15)):
            assert (np.abs(picture - colour).max(2) <= 2).sum() >= least, (scene.setting, colour)


def test_the_folder_cat_holds_five_pictures_of_the_documented_individual() -> None:
    expected = scenes.instance_scenes(scenes.individual(**EXAMPLE), 5, EXAMPLE_SCENES)
    assert sorted(path.name for path in CAT.iterdir()) == [f"{i:02d}.png" for i in range(1, 6)]
    for i, scene in enumerate(expected, 1):
        with Image.open(CAT / f"{i:02d}.png") as picture:
            assert (picture.size, picture.mode) == ((256, 256), "RGB")
            # Pillow's releases may round edges differently.
            assert np.abs(np.asarray(picture).astype(int) - pixels(scene, 256)).mean() < 2


def test_the_command_individual_writes_instances_and_held_out_pictures(tmp_path: Path) -> None:
    assert main(["individual", str(tmp_path), "--seed", "7", "--heldout", "4"]) == 0
    assert sorted(p.name for p in (tmp_path / "instance").iterdir()) == [f"{i:02d}.png" for i in range(1, 6)]
    rows = [json.loads(line) for line in (tmp_path / "heldout" / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["01.png", "02.png", "03.png", "04.png"]
    for row in rows:
        assert Image.open(tmp_path / "heldout" / row["file_name"]).size == (64, 64)
        assert row["text"] == f"a {row['kind']} {row['setting']}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["individual", "OUT", "--kind", "unicorn"],
        ["individual", "OUT", "--instances", "99"],
        ["individual", "OUT", "--heldout", "-1"],
        ["individual", "OUT", "--size", "5"],
        ["build", "--work", "OUT", "--stages", "sculpture"],
        ["build", "--work", "OUT", "--stages", "unet"],
        ["build", "--work", "OUT", "--stages", "data", "--scenes", "17"],
        ["build", "--work", "OUT", "--unet-steps", "0"],
        ["build", "--work", "OUT", "--init", "OUT"],
        ["report", "--work", "OUT", "--weights", "OUT"],
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_1(arguments: list[str], tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path) if word == "OUT" else word for word in arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_a_work_folder_of_other_settings_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "settings.json").write_text('{"scenes": 500, "seed": 3}')
    assert main(["build", "--work", str(tmp_path), "--stages", "tokenizer"]) == 1
    assert "another --work folder" in capsys.readouterr().err


def test_a_build_that_goes_on_from_exported_weights_keeps_their_latents_and_words(tmp_path: Path) -> None:
    counts = [word for name in ("vae", "unet", "clip") for word in (f"--{name}-steps", "1")]
    arguments = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), "--init", str(miniature.WEIGHTS)]
    assert main(["build", *arguments, "--scenes", "500", "--processes", "1", *counts]) == 0
    before, after = (load_weights(folder) for folder in (miniature.WEIGHTS, tmp_path / "out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = {name.split(".")[0] for name in changed}
    assert parts >= {"pipeline/vae", "pipeline/unet", "pipeline/text_encoder", "clip"}
    assert not [name for name in changed if name.startswith(("pipeline/vae.encoder", "pipeline/vae.quant_conv"))]
    for file in ("pipeline/tokenizer/tokenizer.json", "pipeline/vae/config.json"):
        old, new = (json.loads((folder / file).read_text()) for folder in (miniature.WEIGHTS, tmp_path / "out"))
        assert {**old, "_diffusers_version": ""} == {**new, "_diffusers_version": ""}


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor under a folder of exported weights, by "folder.name"."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        if file.parent != folder:
            prefix = file.parent.relative_to(folder).as_posix()
            found |= {f"{prefix}.{name}": tensor for name, tensor in load_file(file).items()}
    return found


# ------------------------------------------------------------------------------------------------ the training loop


class Toy:
    """A network of an embedding, a convolution and a linear layer, and its training."""

    def __init__(self, folder: Path, muon: float) -> None:
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"e": nn.Embedding(5, 8), "c": nn.Conv2d(2, 8, 3), "l": nn.Linear(8, 3)})
        plan = Plan(steps=12, learning_rate=1e-2, batch_size=4, warmup=3, muon=muon, save_every=5, log_every=4)
        self.fit = Fit("toy", {"net": self.net}, plan, folder, seed=1)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(4, 2, 6, 6, generator=generator)
        index = torch.randint(5, (4,), generator=generator)
        hidden = self.net["c"](x).mean((2, 3)) + self.net["e"](index)
        return (self.net["l"](hidden.tanh()) - x.mean()).square().mean(), {}

    def run(self) -> list[Tensor]:
        self.fit.run(self.loss)
        return [*self.fit.parameters, *self.fit.averages]


@pytest.mark.parametrize("muon", [0.0, 2e-2])
def test_training_resumes_bit_for_bit(muon: float, tmp_path: Path) -> None:
    whole, stopped, killed = (tmp_path / name for name in ("whole", "stopped", "killed"))
    for folder in (whole, stopped, killed):
        folder.mkdir()
    expected = Toy(whole, muon).run()

    polite, step_loss = Toy(stopped, muon), Toy.loss

    def ask_to_stop(self: Toy, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_loss(self, step, generator)

    with pytest.raises(KeyboardInterrupt, match="stopped at step 7"):
        polite.fit.run(lambda step, generator: ask_to_stop(polite, step, generator))

    crashing = Toy(killed, muon)

    def crash(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        if step == 8:
            raise RuntimeError("power cut")
        return crashing.loss(step, generator)

    with pytest.raises(RuntimeError):
        crashing.fit.run(crash)
    for folder in (stopped, killed):
        found = Toy(folder, muon).run()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_loss_that_is_not_a_number_stops_the_training_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 0.0)

    def poisoned(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        loss, figures = toy.loss(step, generator)
        return (loss * float("nan") if step == 7 else loss), figures

    with pytest.raises(FloatingPointError, match="step 7"):
        toy.fit.run(poisoned)
    again = Toy(tmp_path, 0.0)
    again.fit.resume()
    assert again.fit.step == 5
    assert all(torch.isfinite(p).all() for p in again.fit.parameters)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    Toy(tmp_path, 0.0).run()
    with pytest.raises(ValueError, match="another --work folder"):
        Toy(tmp_path, 2e-2).run()


def test_prolonging_a_plan_changes_nothing_before_its_cooldown() -> None:
    short, long = Plan(steps=1000, learning_rate=1.0), Plan(steps=3000, learning_rate=1.0)
    assert all(short.rate_at(step) == long.rate_at(step) for step in range(700))
    assert short.rate_at(850) == pytest.approx(0.5)
    assert short.rate_at(0) == pytest.approx(1 / 200)


@pytest.mark.parametrize("shape", [(3, 16, 24), (2, 40, 8)])
def test_orthogonalized_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalized(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.4
    # In the basis of the singular vectors the result is about diagonal, and all of its diagonal is about one.
    inside = u.mT @ found @ vh.mT
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 0.1


# --------------------------------------------------------------------------------------------------- the measures


def test_retrieval_counts_right_choices_in_both_directions() -> None:
    features = torch.eye(4)
    assert retrieval(features, features, ways=4) == (1.0, 1.0)
    swapped = features[[1, 0, 2, 3]]
    assert retrieval(features, swapped, ways=4) == (0.5, 0.5)


def test_nearest_is_zero_for_a_copy_and_the_plain_distance_otherwise() -> None:
    training = np.zeros((3, 64, 64, 3), np.uint8)
    training[1] = 100
    copy = torch.full((1, 3, 64, 64), 100 / 127.5 - 1)
    lighter = torch.full((1, 3, 64, 64), 130 / 127.5 - 1)
    assert nearest(torch.cat([copy, lighter]), training).tolist() == pytest.approx([0, 30], abs=0.1)


# ---------------------------------------------------------------------------------------------- the shipped weights


def test_missing_weights_are_an_error_that_says_how_to_make_them(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(miniature, "WEIGHTS", tmp_path)
    for find in (miniature.pipeline_path, miniature.clip_path, miniature.load_pipeline, miniature.load_clip):
        with pytest.raises(FileNotFoundError, match=r"dash_vision\.miniature build"):
            find()


@pytest.mark.parametrize(("find", "megabytes"), [(miniature.pipeline_path, 24), (miniature.clip_path, 4)])
def test_the_shipped_folders_are_small_and_hold_no_pickle(find, megabytes: int) -> None:
    files = [path for path in find().rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    assert sum(path.stat().st_size for path in files) <= megabytes * 1e6


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(str(miniature.pipeline_path()))
    loaded.set_progress_bar_config(disable=True)
    return loaded


def sample(pipeline, prompts: list[str], steps: int = 12) -> np.ndarray:
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    options = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "np"}
    return pipeline(prompts, generator=generators, **options).images


def test_the_shipped_pipeline_loads_by_stock_diffusers_and_follows_the_prompt(pipeline) -> None:
    places = ("in the jungle", "in the snow", "floating on top of water", "on top of pink fabric")
    pictures = sample(pipeline, [f"a photo of a black clock {place}" for place in places])
    assert pictures.shape == (4, 64, 64, 3)
    assert np.isfinite(pictures).all()
    jungle, snow, water, pink = pictures.reshape(4, -1, 3).mean(1)
    assert snow.min() > jungle.max()  # bright against dark
    assert jungle.argmax() == 1
    assert water.argmax() == 2
    assert pink.argmax() == 0


def test_loading_in_half_precision_gives_the_same_model(pipeline) -> None:
    other = miniature.load_pipeline()
    assert all(torch.equal(a, b) for a, b in zip(other.unet.parameters(), pipeline.unet.parameters(), strict=True))
    half = miniature.load_pipeline(torch_dtype=torch.float16)
    assert next(half.unet.parameters()).dtype == torch.float16


def test_the_shipped_tokenizer_has_one_token_for_every_word(pipeline) -> None:
    for word in vocabulary.world_words():
        assert len(pipeline.tokenizer(word).input_ids) == (5 if word == "two-tone" else 3), word


def test_the_shipped_clip_shares_the_pipelines_text_encoder_and_knows_pictures_from_captions(pipeline) -> None:
    from transformers import CLIPProcessor

    clip, processor = miniature.load_clip(), CLIPProcessor.from_pretrained(miniature.clip_path())
    text = dict(clip.text_model.named_parameters())
    for name, parameter in pipeline.text_encoder.named_parameters():
        assert torch.equal(parameter, text[name.removeprefix("text_model.")])
    shown = [scenes.random_scene(Random(f"fresh {i}")) for i in range(50)]  # none of them is a training scene
    inputs = processor(
        text=[scenes.describe(scene, two=True, pattern=True, mark=True) for scene in shown],
        images=[scenes.render(scene) for scene in shown],
        padding="max_length",
        return_tensors="pt",
    )
    assert inputs["pixel_values"].shape == (50, 3, 64, 64)
    with torch.no_grad():
        found = clip(**inputs)
    right = retrieval(found.image_embeds, found.text_embeds, ways=50)
    assert min(right) > 40 / 50  # docs/miniature.md: about nine in ten of twice as many


def test_the_shipped_text_encoder_has_the_names_that_every_version_of_transformers_reads() -> None:
    names = [name for name in load_weights(miniature.pipeline_path()) if name.startswith("text_encoder.")]
    assert names
    assert all(name.startswith("text_encoder.text_model.") for name in names)

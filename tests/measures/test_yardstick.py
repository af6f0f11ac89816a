"""Likeness, drift and leak of made cases, whose answers are known without measuring."""

from functools import cache

import numpy as np
import pytest
import torch

from dash_vision.measures.asking import ask
from dash_vision.measures.encoders import Encoders, find_encoders
from dash_vision.measures.prompts import COUNT, unrelated_prompts
from dash_vision.measures.similarity import drift
from dash_vision.measures.yardstick import Measured, Yardstick
from dash_vision.miniature.world.scenes import KINDS, individual, instance_scenes, random_scene, render
from dash_vision.runs.seeds import python_stream

INSTANCE, CLASS = "a photo of sks cat", "a photo of cat"
REAL = [render(scene) for scene in instance_scenes(individual(16737, "cat"), 3, 1)]


@cache
def encoders():
    found, problems = find_encoders([], embedded=True)
    assert problems == []
    return found


def any_cat(prompts, numbers):
    """A base that knows the class: another picture for every prompt and noise."""
    return [render(random_scene(python_stream(n, prompt))) for prompt, n in zip(prompts, numbers, strict=True)]


def yardstick(captions=(INSTANCE,) * 3, real=REAL, base=any_cat, with_encoders=None):
    asked, own = ask(captions, INSTANCE, CLASS, embedded=True)
    return Yardstick(with_encoders or encoders(), asked, real, own, base)


def cosine(a, b):
    """Of two pictures, by the miniature's ViT, one at a time."""
    x, y = (encoders().likeness.pictures([picture])[0].numpy() for picture in (a, b))
    return float(np.dot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y)))


def test_an_adapter_of_zeros_neither_drifts_nor_leaks():
    ruler = yardstick()
    found = ruler.measure(any_cat)
    assert found.drift == pytest.approx([0] * COUNT, abs=1e-9)
    assert found.leak == pytest.approx([0] * len(ruler.asked.class_), abs=1e-9)
    assert found == ruler.of_base()


def test_an_adapter_that_draws_the_subject_for_every_prompt_leaks_as_much_as_it_is_like():
    subject = REAL[0]
    ruler = yardstick(real=[subject], captions=[INSTANCE])
    found = ruler.measure(lambda prompts, numbers: [subject] * len(prompts))
    assert found.likeness == pytest.approx([1] * 4)
    assert found.class_likeness == pytest.approx([1] * 4)
    count = len(ruler.asked.subject)
    class_by_base = any_cat(ruler.asked.class_, range(count))
    assert found.leak == pytest.approx([1 - cosine(picture, subject) for picture in class_by_base], abs=1e-6)
    others = any_cat(ruler.asked.unrelated, range(COUNT))
    assert found.drift == pytest.approx([(1 - cosine(subject, picture)) / 2 for picture in others], abs=1e-6)
    assert min(found.drift) > 0.05


def test_a_perfect_copy_is_as_like_as_pictures_can_be_and_changes_nothing_else():
    captions = [f"a photo of sks cat number {n}" for n in range(3)]
    ruler = yardstick(captions)

    def copied(prompts, numbers):
        drawn = any_cat(prompts, numbers)
        return [REAL[captions.index(p)] if p in captions else one for p, one in zip(prompts, drawn, strict=True)]

    found = ruler.measure(copied)
    assert found.likeness == pytest.approx([1] * 6)  # each of three held-out pictures is drawn twice
    assert max(map(abs, found.drift + found.leak)) < 1e-9


def test_a_drawing_is_compared_with_all_pictures_of_its_caption():
    captions = ["a photo of sks cat", "a photo of sks cat in the snow", "a photo of sks cat"]
    ruler = yardstick(captions)
    found = ruler.measure(lambda prompts, numbers: [REAL[2]] * len(prompts))
    plain = (cosine(REAL[2], REAL[0]) + 1) / 2
    snow = cosine(REAL[2], REAL[1])
    assert found.likeness == pytest.approx([plain, snow, plain] * 2, abs=1e-6)


def test_adherence_is_the_cosine_with_the_prompt_without_the_rare_word():
    ruler = yardstick()
    assert set(ruler.asked.said) == {"a photo of cat"}
    found = ruler.measure(lambda prompts, numbers: [REAL[0]] * len(prompts))
    clip = encoders().text
    expected = float(clip.pictures([REAL[0]])[0] @ clip.texts(["a photo of cat"])[0])
    assert found.adherence == pytest.approx([expected] * 3 * 2)


def test_the_class_is_drawn_from_the_noise_of_the_subject():
    seen = []

    def watched(prompts, numbers):
        seen.extend(zip(prompts, numbers, strict=True))
        return any_cat(prompts, numbers)

    yardstick(base=watched).of_base()
    subject, classes = ([n for p, n in seen if p == prompt] for prompt in (INSTANCE, CLASS))
    assert subject == classes == list(range(6))
    assert [n for p, n in seen if p not in (INSTANCE, CLASS)] == list(range(COUNT))


def test_without_an_encoder_nothing_is_drawn_or_measured():
    def never(prompts, numbers):
        raise AssertionError("something was drawn")

    ruler = yardstick(base=never, with_encoders=Encoders())
    assert ruler.measure(never) == ruler.of_base() == Measured()


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_drift_name_no_part_of_the_subject(kind):
    prompts = unrelated_prompts(True, f"a photo of sks {kind}")
    assert len(set(prompts)) == COUNT
    shared = [word for prompt in prompts for word in kind.split() if word in prompt.split()]
    assert not shared
    assert len(set(unrelated_prompts(False, f"sks {kind}"))) == COUNT


def test_an_encoder_that_cannot_be_had_is_one_sentence(tmp_path):
    found, problems = find_encoders([str(tmp_path)], embedded=True)
    assert found.names == {}
    assert len(problems) == 1
    assert "--eval_encoders takes" in problems[0]


def test_names_of_encoders_are_of_what_they_measure():
    assert encoders().names == {
        "likeness": "ViT of the miniature",
        "drift": "ViT of the miniature",
        "leak": "ViT of the miniature",
        "adherence": "CLIP of the miniature",
    }


def test_drift_of_opposite_pictures_is_one():
    """(1 - cosine) / 2 is 1 for opposite features, 1/2 for unrelated ones."""
    on, off = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert drift(on, off).tolist() == [1.0, 0.5]

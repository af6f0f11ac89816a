"""Line-ups: one of four is the subject, and the share of right answers."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.individuals import Arm, Case, arm_folder
from benchmarks.lineup import LETTERS, SHOWN, candidates, interval, judged, main, page
from dash_vision.files.errors import InputError


def test_the_subject_stands_among_others_of_its_kind_and_colour(tmp_path: Path) -> None:
    keys = set()
    for seed in range(12):
        case = Case.make(seed, tmp_path, 6)
        subjects, key = candidates(case)
        assert subjects[LETTERS.index(key)] == case.heldout[0].subject
        assert len(set(subjects)) == 4
        assert {(one.kind, one.colour) for one in subjects} == {(case.kind, case.heldout[0].subject.colour)}
        assert candidates(case) == (subjects, key)
        keys.add(key)
    assert keys == set(LETTERS)


def test_wilsons_interval_is_the_tabulated_one() -> None:
    low, high = interval(9, 10)
    assert (low, high) == (pytest.approx(0.5958, abs=1e-3), pytest.approx(0.9821, abs=1e-3))
    assert interval(0, 10)[0] == pytest.approx(0, abs=1e-9)


def test_right_answers_are_counted_and_wrong_ones_named() -> None:
    said = judged(["A", "B", "C", "D"], ["A", "B", "D", "D"])
    assert said.startswith("3 of 4 right")
    assert said.endswith("page 3: D, not C")
    with pytest.raises(InputError, match="a letter of ABCD for each of 2 pages"):
        judged(["A", "B"], ["A"])


def test_a_page_shows_the_drawings_and_every_candidate(tmp_path: Path) -> None:
    case, arm = Case.make(3, tmp_path, 6), Arm("LoRA", ())
    with pytest.raises(InputError, match="no drawings"):
        page(case, arm, 1)
    folder = arm_folder(case, arm, 0) / "pictures"
    folder.mkdir(parents=True)
    for i in range(SHOWN):
        Image.new("RGB", (64, 64), (255, 0, 255)).save(folder / f"{i:02d}.png")
    made = page(case, arm, 1)
    magenta = sum(count for count, colour in made.getcolors(1 << 24) if colour == (255, 0, 255))
    assert magenta >= SHOWN * 190 * 190


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "run benchmarks.individuals first" in capsys.readouterr().err

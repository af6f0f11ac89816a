"""Whatever is wrong with a file: one sentence that names it, or a counted skip, and never a traceback."""

import contextlib
import io
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dash_vision.__main__
import train_dreambooth
import train_vtab
from dash_vision import InputError, load_adapter
from tests.malformed.adapters import network
from tests.malformed.cases import CANARY, EITHER, REFUSED, SKIPPED, Case
from tests.malformed.corpus import corpus
from tests.malformed.files import Bomb
from tests.malformed.pictures import odd_pictures
from tests.support.bases import save_base
from tests.support.paths import ROOT
from tests.support.processes import run

PROGRAMS = {
    "dreambooth": train_dreambooth.main,
    "vtab": train_vtab.main,
    "dash_vision": dash_vision.__main__.main,
}
KINDS = ("image", "caption", "adapter", "checkpoint", "settings", "result", "layout", "classifier")
SECONDS = 60  # far more than any case takes, on a slow machine too: it is there to find what hangs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("malformed")


@pytest.fixture(scope="module")
def cases(folder) -> list[Case]:
    return corpus(folder / "corpus")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def late(signum, frame):
        raise TimeoutError(f"hung for {SECONDS} s")

    before = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM)}
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def call(program: str, words: tuple[str, ...]) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited():
        try:
            status = PROGRAMS[program](list(words))
        except SystemExit as end:
            status = int(end.code or 0)
    return status, out.getvalue(), err.getvalue()


def complaint(case: Case) -> str:
    """What is wrong with the answer to a case; "" when it is as it should be."""
    try:
        status, out, err = call(case.program, case.words)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if case.expect == SKIPPED:
        return "" if status == 0 and case.named in out else f"status {status}, without {case.named}: {out}{err}"
    if case.expect == EITHER and status == 0:
        return ""
    # The report of --check_data has a line for every problem.
    lines = (out if "--check_data" in case.words and not err else err).splitlines()
    if status == 0:
        return f"accepted: {out}"
    if not any(case.named in line for line in lines):
        return f"does not name {case.named}: {out}{err}"
    if len(err.splitlines()) > 1 or not all(line.isprintable() and len(line) < 1500 for line in lines):
        return f"is not one sentence: {lines}"
    return ""


def test_there_are_at_least_two_hundred_cases_of_every_kind(cases):
    counts = {kind: sum(case.kind == kind for case in cases) for kind in KINDS}
    assert sum(counts.values()) == len(cases) >= 200
    assert min(counts.values()) >= 30
    assert {case.expect for case in cases} == {REFUSED, SKIPPED, EITHER}


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_gets_one_sentence_or_a_counted_skip(cases, folder, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = [case for case in cases if case.kind == kind]
    wrong = [f"{case.name}: {text[:300]}" for case in chosen if (text := complaint(case))]
    assert not wrong, f"{len(wrong)} of {len(chosen)}:\n" + "\n".join(wrong)
    assert not executed(folder, tmp_path)


def executed(*folders: Path) -> list[Path]:
    """What pickles and YAML tags of the corpus have made, where one of them was executed."""
    return [path for folder in folders for path in folder.rglob(CANARY)]


def test_nothing_of_the_corpus_was_executed(cases, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dangerous = [case for case in cases if any(word in case.name for word in ("pickle", "tag"))]
    assert {"image", "adapter", "checkpoint", "settings", "classifier"} <= {case.kind for case in dangerous}
    assert not [case.name for case in dangerous if complaint(case)]
    assert not executed(folder, tmp_path)
    pickle.loads(pickle.dumps(Bomb(tmp_path / "x")))
    assert executed(folder, tmp_path)  # as any of them would have done


def test_an_adapter_that_is_refused_leaves_the_model_as_it_was(cases):
    x = torch.randn(3, 12)
    tried = 0
    for case in cases:
        if case.kind != "adapter" or case.words[0] != "inspect":
            continue
        model = network()
        names, expected = list(dict(model.named_modules())), model(x)
        try:
            load_adapter(model, case.words[1])
        except InputError:
            tried += 1
            assert list(dict(model.named_modules())) == names, case.name
            assert torch.equal(model(x), expected), case.name
        else:
            assert case.expect == EITHER, case.name
    assert tried > 100


def test_an_adapter_of_another_base_is_refused_by_name(cases):
    good = Path(next(case.words[1] for case in cases if case.kind == "adapter")).parent.parent / "good.safetensors"
    model = network()
    with torch.no_grad():
        model[0].weight.add_(0.5)
    before = model[0].weight.clone()
    for other, words in ((model, "another base"), (network(13), "does not fit")):
        with pytest.raises(InputError, match=words) as error:
            load_adapter(other, good)
        assert str(good) in str(error.value)
    assert torch.equal(model[0].weight, before)


def test_unusual_pictures_are_trained_on(tmp_path):
    save_base(tmp_path / "base")
    (tmp_path / "cat").mkdir()
    names = []
    for name, data in odd_pictures():
        (tmp_path / "cat" / name).write_bytes(data)
        names.append(name)
    words = ["--instance_data", str(tmp_path / "cat"), "--pretrained_model_name_or_path", str(tmp_path / "base")]
    words += ["--output_dir", str(tmp_path / "out"), "--max_train_steps", "2", "--prelaunch_steps", "1"]
    words += ["--num_inference_steps", "1", "--validation_prompt", "a cat", "--num_crop_variants", "1"]
    status, out, err = call("dreambooth", tuple(words))
    assert status == 0, err
    assert f"pictures: {len(names)} in" in out
    for words in (
        "used only the first frame of 1 picture: animated.gif",
        "put the transparent parts of 1 picture on white: palette.png",
        "ignored unreadable EXIF data in 2 pictures",
    ):
        assert words in out


def test_a_broken_checkpoint_of_dreambooth_is_one_sentence(cases, tmp_path):
    """The reader is the one that all checkpoint cases pass; here that the script says so."""
    save_base(tmp_path / "base")
    broken = next(case for case in cases if case.kind == "checkpoint" and case.name == "tensors, flip 0")
    words = [*broken_dreambooth(tmp_path), "--resume_from_checkpoint", broken.named]
    status, _, err = call("dreambooth", tuple(words))
    assert status == 2
    assert broken.named in err
    assert "checksum" in err
    assert err.count("\n") == 1


def broken_dreambooth(tmp_path: Path) -> list[str]:
    (tmp_path / "cat").mkdir()
    name, data = next(odd_pictures())
    (tmp_path / "cat" / name).write_bytes(data)
    words = ["--instance_data", str(tmp_path / "cat"), "--pretrained_model_name_or_path", str(tmp_path / "base")]
    return [*words, "--output_dir", str(tmp_path / "out"), "--num_crop_variants", "1"]


def chosen(cases, kind):
    return next(c for c in cases if c.kind == kind and c.program != "dreambooth" and c.expect == REFUSED)


def test_the_scripts_themselves_say_it_too(cases):
    """In processes of their own, the script's even started anew: nothing is added to the sentence on the way out."""
    script, module = chosen(cases, "settings"), chosen(cases, "adapter")
    words = [sys.executable, "train_vtab.py", *script.words]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    forked = run(["-m", "dash_vision", *module.words])
    for case, status, errors in ((script, done.returncode, done.stderr), (module, forked.poll(), forked.stderr)):
        assert status == 2
        assert case.named in errors
        assert errors.count("\n") == 1

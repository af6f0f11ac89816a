"""Whatever is wrong with a file: one sentence that names it, or a counted skip; no traceback, nothing executed.

The files come from malformed.py; the commands are those of users, called in this process.
"""

import ast
import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import save_base
from malformed import CANARY, EITHER, REFUSED, SKIPPED, Case, corpus, network, odd_pictures
from vtab_helpers import ROOT

import dash_vision.__main__
from dash_vision import InputError, load_adapter

sys.path.insert(0, str(ROOT))
import train_dreambooth
import train_vtab

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
def test_every_case_gets_one_sentence_or_a_counted_skip(cases, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = [case for case in cases if case.kind == kind]
    wrong = [f"{case.name}: {text[:300]}" for case in chosen if (text := complaint(case))]
    assert not wrong, f"{len(wrong)} of {len(chosen)}:\n" + "\n".join(wrong)


def test_nothing_of_the_corpus_was_executed(cases, folder, tmp_path):
    """Runs after the cases: the pickles and YAML tags among them would have made a file."""
    assert any("pickle" in case.name for case in cases)
    assert not list(folder.rglob(CANARY))
    assert not list(tmp_path.parent.rglob(CANARY))


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


def test_the_scripts_themselves_say_it_too(cases, tmp_path):
    """In processes of their own: nothing is added to the sentence on the way out."""
    for kind, script in (("settings", "train_vtab.py"), ("adapter", "-m dash_vision")):
        case = next(c for c in cases if c.kind == kind and c.program != "dreambooth" and c.expect == REFUSED)
        done = subprocess.run(
            [sys.executable, *script.split(), *case.words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert case.named in done.stderr
        assert done.stderr.count("\n") == 1


# -- what SECURITY.md promises


def calls(folder: str = "") -> Iterator[tuple[str, str, ast.Call]]:
    """(where, name, call) of every call in the package, or in the package, eval and the scripts."""
    files = [*(ROOT / "dash_vision").rglob("*.py"), *(ROOT / "eval").rglob("*.py"), *ROOT.glob("*.py")]
    assert len(files) > 30
    for file in files:
        place = str(file.relative_to(ROOT))
        if place.startswith(folder):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield f"{place}:{node.lineno}", ast.unparse(node.func), node


def given(call: ast.Call, name: str) -> object:
    """The constant given for a keyword; None without one."""
    return next((getattr(k.value, "value", k.value) for k in call.keywords if k.arg == name), None)


FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "shelve.open", "marshal.loads"),
}


def test_the_code_evaluates_and_unpickles_nothing():
    seen = 0
    for where, name, node in calls():
        seen += 1
        assert name not in FORBIDDEN, f"{where}: {name}"
        assert given(node, "trust_remote_code") in (None, False), where
        assert given(node, "shell") in (None, False), where
        assert given(node, "allow_pickle") in (None, False), where
        assert name != "torch.load" or given(node, "weights_only") is True, where
    assert seen > 1000


def test_weights_that_users_name_are_read_from_safetensors():
    """dash_vision/miniature reads what it wrote or ships itself."""
    found = 0
    for where, name, node in calls("dash_vision"):
        if name.endswith(".from_pretrained") and "miniature" not in where and name != "PeftModel.from_pretrained":
            found += 1
            assert given(node, "use_safetensors") is True, where
    assert found >= 2


def test_decoders_of_pictures_have_a_list_of_formats():
    """Without one pillow tries all it knows, and hands EPS files to Ghostscript, which runs them."""
    found = 0
    for where, name, node in calls():
        if name == "Image.open":
            found += 1
            assert any(k.arg == "formats" for k in node.keywords), where
    assert found >= 4

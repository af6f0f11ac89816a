"""What SECURITY.md promises, checked in the source."""

import ast
from collections.abc import Iterator

from tests.support.paths import ROOT


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
    """dash_vision/miniature reads what it wrote or ships itself, and a configuration is no weight."""
    found = 0
    for where, name, node in calls("dash_vision"):
        kind = name.removesuffix(".from_pretrained")
        other = kind == "PeftModel" or kind.endswith(("config_class", "AutoConfig", "Processor"))
        if name.endswith(".from_pretrained") and "miniature" not in where and not other:
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
    assert found >= 2  # both in pictures.decode

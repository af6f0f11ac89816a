"""--push_to_hub: the token is looked at first, the adapter is pushed last, and a failure keeps everything."""

from types import SimpleNamespace

import huggingface_hub
import pytest

from dash_vision.diffusion.config import DreamBoothConfig
from dash_vision.diffusion.hub import check_token, push
from dash_vision.files.errors import InputError, RunError
from tests.support.scripts import dreambooth

TOKEN = "hf_" + "x" * 20


class Hub:
    """Stands for huggingface_hub.HfApi; `calls` of all of them."""

    def __init__(self, monkeypatch, role="write", fails=None):
        self.calls, self.role, self.fails = [], role, fails
        monkeypatch.setattr(huggingface_hub, "HfApi", self.api)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def api(self, token=None):
        self.calls.append(("token", token))
        return self

    def whoami(self):
        if self.fails == "whoami":
            raise OSError("401 Client Error")
        return {"name": "me", "auth": {"accessToken": {"role": self.role}}}

    def create_repo(self, name, **options):
        self.calls.append(("create", name))
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, **options):
        if self.fails == "upload":
            raise OSError("no space on the hub")
        self.calls.append(("upload", options))


def config(**changes):
    return DreamBoothConfig(instance_data_dir="x", push_to_hub=True, **changes)


def test_a_token_is_needed_and_must_be_able_to_write(monkeypatch):
    Hub(monkeypatch)
    with pytest.raises(InputError, match="needs a token of the hub"):
        check_token(config())
    check_token(config(hub_token=TOKEN))
    Hub(monkeypatch, role="read")
    with pytest.raises(InputError, match="may only read"):
        check_token(config(hub_token=TOKEN))
    Hub(monkeypatch, fails="whoami")
    with pytest.raises(InputError, match="the hub does not take the token"):
        check_token(config(hub_token=TOKEN))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        check_token(config(hub_token=TOKEN))


def test_a_run_without_a_token_does_not_begin(bases, tmp_path, monkeypatch, capsys):
    Hub(monkeypatch)
    monkeypatch.setattr("dash_vision.diffusion.setup.load_base", lambda *a: pytest.fail("loaded a model"))
    assert dreambooth(bases, tmp_path / "out", "--push_to_hub") == 2
    assert "needs a token" in capsys.readouterr().err


def test_a_run_pushes_its_adapter_and_its_card_and_the_token_is_nowhere(bases, tmp_path, monkeypatch, capsys):
    hub = Hub(monkeypatch)
    assert dreambooth(bases, tmp_path / "my-cat", "--push_to_hub", "--hub_token", TOKEN) == 0
    (options,) = [options for name, options in hub.calls if name == "upload"]
    assert options["repo_id"] == "me/my-cat"
    pushed = options["allow_patterns"]
    assert {"README.md", "samples.png", "pytorch_lora_weights.safetensors"} <= set(pushed)
    assert not any(pattern.startswith(("run", "checkpoint", "class")) for pattern in pushed)
    assert ("token", TOKEN) in hub.calls
    said = capsys.readouterr()
    assert "https://huggingface.co/me/my-cat" in said.out
    assert TOKEN not in said.out + said.err
    written = b"".join(path.read_bytes() for path in (tmp_path / "my-cat").rglob("*") if path.is_file())
    assert TOKEN.encode() not in written


def test_a_failure_to_push_is_a_sentence_with_the_command_that_does_it_later(bases, tmp_path, monkeypatch, capsys):
    Hub(monkeypatch, fails="upload")
    out = tmp_path / "out"
    assert dreambooth(bases, out, "--push_to_hub", "--hub_token", TOKEN, "--hub_model_id", "me/cat") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "no space on the hub" in said
    assert f"hf upload me/cat {out}" in said
    assert (out / "run.json").is_file()
    with pytest.raises(RunError):
        push(config(hub_token=TOKEN), out)

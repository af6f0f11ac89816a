"""What the hub answers reaches the user: a server here gives the answers that the hub gives."""

import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from dash_vision.bases.backbones import build, describe
from dash_vision.bases.loading import load_base
from dash_vision.files.errors import InputError

ANSWERS = {
    "gated": (403, "GatedRepo", "it is gated: accept its terms on its page, then `hf auth login`"),
    "absent": (401, "RepoNotFound", "there is none of that name, or it is private"),
    "revision": (404, "RevisionNotFound", "it has no such --revision"),
    "entry": (404, "EntryNotFound", "model_index.json"),
    "busy": (503, None, "its answer was 503"),
}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        status, code, _ = ANSWERS[self.path.split("/")[2] if "api" not in self.path else self.path.split("/")[4]]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


@pytest.fixture
def online(monkeypatch, tmp_path):
    """Sets the address of the hub that is asked."""

    def ask(port):
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own attempts
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        address = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", address, raising=False)

    return ask


@pytest.fixture
def hub(online):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online(server.server_port)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_hubs_cause_is_named(hub, kind):
    with pytest.raises(InputError) as caught:
        load_base(f"someone/{kind}")
    assert ANSWERS[kind][2] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_named(online):
    online(1)
    with pytest.raises(InputError, match=r"the hub cannot be reached .*check the network"):
        load_base("someone/some-model")


def test_a_backbone_that_cannot_be_fetched_says_why(online):
    online(1)
    with pytest.raises(InputError, match=r"could not fetch the weights of .*the hub cannot be reached .*--checkpoint"):
        build(describe("vit_tiny_patch16_224.augreg_in21k"), 2)


@pytest.fixture
def cached(bases, tmp_path, monkeypatch):
    """The snapshot of someone/base in a hub cache, which is all there is while the hub is off."""
    home = tmp_path / "hub" / "models--someone--base"
    snapshot = shutil.copytree(bases / "sd", home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_a_base_in_the_hubs_cache_is_the_same_as_in_a_folder(bases, cached):
    base = load_base("someone/base")
    assert base.name == "someone/base"
    assert base.identity() == load_base(str(bases / "sd")).identity()


def test_an_incomplete_snapshot_says_what_it_lacks(cached):
    (cached / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"cannot load the base someone/base: vae/ holds no weights"):
        load_base("someone/base")

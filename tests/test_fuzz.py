"""Any bytes at all: adapters, checkpoints and captions are what was written, or are refused in a sentence."""

import contextlib
import copy
import json

import pytest
import torch
from helpers import trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import header_of, network, save_sealed
from safetensors.torch import load_file

from dash_vision import DashConfig, InputError, load_adapter, save_adapters
from dash_vision.files.checkpoint import load_checkpoint, save_checkpoint
from dash_vision.files.errors import one_line
from dash_vision.files.native import read_native
from dash_vision.pictures.captions import read_metadata

FUZZ = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
X = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))


@st.composite
def damaged(draw, data):
    """`data` with bytes changed, removed, put in or cut off; or bytes of another origin."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        # The header is where the structure is: half of the damage goes there.
        at = draw(st.one_of(st.integers(0, len(content)), st.integers(0, min(600, len(content)))))
        kind = draw(st.sampled_from(["flip", "remove", "insert", "cut", "zero"]))
        if kind == "flip" and at < len(content):
            content[at] ^= draw(st.integers(1, 255))
        elif kind == "remove":
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=40))
        elif kind == "zero":
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        elif kind == "cut":
            del content[at:]
    return bytes(content)


def any_file(data):
    return st.one_of(damaged(data), damaged(data), damaged(data), st.binary(max_size=300))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(content, at=()):
    """The path of every value in a JSON value."""
    yield at
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from places(content[key], (*at, key))


def replaced(content, at, value):
    """A copy of a JSON value with the one at `at` replaced."""
    if not at:
        return value
    content = copy.copy(content)
    content[at[0]] = replaced(content[at[0]], at[1:], value)
    return content


# -- adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "dash_adapter.safetensors"
    save_adapters(trained(network(), DashConfig(rank=2, dash_k=3, target=["0", "2"])), path, {"base": "x"})
    return path


def loads_whole_or_not_at_all(path):
    """Load into a model; afterwards, or after a refusal, the model computes what it did."""
    model = network()
    expected = model(X)
    message = str(path)
    try:
        load_adapter(model, path).remove()
    except InputError as error:
        message = one_line(error)
    assert str(path) in message
    assert torch.equal(model(X), expected)


@FUZZ
@given(data=st.data())
def test_a_damaged_adapter_is_refused_or_the_same(adapter, tmp_path, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data.draw(any_file(adapter.read_bytes())))
    (good,) = read_native(adapter).values()
    try:
        (state,) = read_native(path).values()
    except InputError:
        pass
    else:
        assert (state.settings, state.launched, state.kinds) == (good.settings, good.launched, good.kinds)
        assert state.probes == good.probes
        assert all(torch.equal(tensor, good.tensors[key]) for key, tensor in state.tensors.items())
    loads_whole_or_not_at_all(path)


@FUZZ
@given(data=st.data())
def test_an_adapter_whose_header_says_anything_is_refused_or_fits(adapter, tmp_path, data):
    """Changed on purpose, with a checksum that fits."""
    header = json.loads(header_of(adapter.read_bytes())[0]["__metadata__"]["dash_vision"])
    for _ in range(data.draw(st.integers(1, 2))):
        header = replaced(header, data.draw(st.sampled_from(list(places(header)))), data.draw(json_values))
    path = tmp_path / "a.safetensors"
    save_sealed(path, header if isinstance(header, dict) else {"content": header}, load_file(adapter))
    loads_whole_or_not_at_all(path)


# -- checkpoints


tensors = st.builds(
    lambda shape, dtype: torch.arange(int(torch.tensor(shape).prod()) if shape else 1).reshape(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]),
)
states = st.dictionaries(
    st.text(max_size=5) | st.integers(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | tensors,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@FUZZ
@given(state=states)
def test_any_state_comes_back_as_it_was(tmp_path, state):
    save_checkpoint(tmp_path / "a.safetensors", state)
    assert equal(load_checkpoint(tmp_path / "a.safetensors"), state)


@FUZZ
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_or_the_same(tmp_path, data):
    state = {
        "step": 7,
        "losses": [0.5, 1e-300],
        "m": {0: torch.arange(12.0)},
        "betas": (0.9, 0.99),
        "s": "x",
        "n": None,
    }
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, state)
    path.write_bytes(data.draw(any_file(path.read_bytes())))
    found, message = state, str(path)
    try:
        found = load_checkpoint(path)
    except InputError as error:
        message = one_line(error)
    assert equal(found, state)
    assert str(path) in message


# -- captions


lines = st.fixed_dictionaries({"file_name": st.sampled_from(["1.png", "2.png"]), "text": st.text(max_size=30)})


@FUZZ
@given(data=st.data(), records=st.lists(lines, min_size=1, max_size=3))
def test_damaged_metadata_are_refused_or_mean_what_json_says(tmp_path, data, records):
    whole = "\n".join(json.dumps(record) for record in records).encode()
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(data.draw(any_file(whole)))
    with contextlib.suppress(InputError):
        found = read_metadata(path, ["1.png", "2.png"])
        rows = [json.loads(line) for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]
        assert len(found) == len(rows)
        blank = str.maketrans(dict.fromkeys([*range(32), *range(127, 160)], " "))  # control characters
        for row in rows:
            caption = found[row["file_name"].removeprefix("./")]
            assert caption.split() == (row["text"] or "").translate(blank).split()

"""Any bytes at all: adapters and checkpoints are what was written, or are refused in a sentence."""

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dash_vision import DashConfig, InputError, load_adapter, save_adapters
from dash_vision.files.checkpoint import load_checkpoint, save_checkpoint
from dash_vision.files.errors import one_line
from dash_vision.files.native import read_native
from tests.malformed import header_of, network, save_sealed
from tests.support.fuzz import FUZZ, any_file
from tests.support.models import trained

X = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))


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

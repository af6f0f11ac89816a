"""Exports of a lower rank and in half precision, against the dense update's own singular values."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dash_vision import DashConfig, export_lora
from dash_vision.core.loading import adapter_state
from dash_vision.files.lora import export_states
from dash_vision.files.low_rank import best_of_rank
from tests.support.adapters import net
from tests.support.models import trained


def dense(weights):
    """The update by the paper's formula, in float64."""
    w = {key: value.double() for key, value in weights.state_dict().items()}
    return weights.scaling * w["B"] @ w["A"] + w["U"] @ torch.diag(w["dsigma"]) @ w["V"]


def truncated(matrix, rank):
    """The nearest matrix of a rank, and the share of the squared Frobenius norm in it."""
    U, sigma, V = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank] * sigma[:rank] @ V[:rank], float(sigma[:rank].square().sum() / sigma.square().sum())


def layers_of(path, down, up):
    tensors = load_file(path)
    return {
        key.removesuffix(down): (value.double(), tensors[key.removesuffix(down) + up].double())
        for key, value in tensors.items()
        if key.endswith(down)
    }


@pytest.fixture
def mixed():
    """An adapter on a linear layer, a convolution and one that is narrower than the rank."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.Flatten(), nn.Linear(40, 12), nn.Linear(12, 4))
    with pytest.warns(UserWarning, match="dash_k"):
        return trained(model, DashConfig(rank=4, alpha=6, dash_k=5, target=["0", "2", "3"]))


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
def test_the_file_holds_the_nearest_matrix_of_its_rank(mixed, tmp_path, format, rank):
    written = export_states({"model": adapter_state(mixed)}, tmp_path, format, rank=rank)
    down, up = (".lora_down.weight", ".lora_up.weight") if format == "kohya" else (".lora_A.weight", ".lora_B.weight")
    found = list(layers_of(written.path, down, up).values())
    assert written.rank == rank
    assert {len(A) for A, _ in found} == {rank}
    energy = kept = 0.0
    for (A, B), (name, weights), told in zip(found, mixed.weights(), written.layers, strict=True):
        update = dense(weights)
        nearest, share = truncated(update, rank)
        torch.testing.assert_close(B.flatten(1) @ A.flatten(1), nearest, rtol=0, atol=1e-6 * float(update.norm()))
        assert told.name == name
        assert told.kept == pytest.approx(share, abs=1e-9)
        assert told.energy == pytest.approx(float(update.square().sum()))
        energy, kept = energy + told.energy, kept + share * told.energy
    ((share, worst),) = written.kept().values()
    assert share == pytest.approx(kept / energy)
    assert worst.kept == min(layer.kept for layer in written.layers)


def test_a_rank_that_suffices_is_exact_and_no_larger_than_needed(mixed, tmp_path):
    """The largest of the three ranks, 4 + 5, 4 + 5 and 4, is that of the file."""
    written = export_states({"model": adapter_state(mixed)}, tmp_path, rank=64)
    assert written.rank == 9
    for layer in written.layers:
        assert layer.kept == 1.0
    for (A, B), (_, weights) in zip(
        layers_of(written.path, ".lora_A.weight", ".lora_B.weight").values(), mixed.weights(), strict=True
    ):
        update = dense(weights)
        torch.testing.assert_close(B.flatten(1) @ A.flatten(1), update, rtol=0, atol=1e-6 * float(update.norm()))
    narrow = load_file(written.path)["unet.3.lora_A.weight"]
    assert narrow[:4].any(dim=1).all()
    assert not narrow[4:].any()


def test_no_matrix_of_the_layers_size_is_formed():
    """20 000 x 20 000 numbers would take 3.2 GB."""
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 20_000), (20_000, 6)))
    (down, up), share = best_of_rank((A, B), 2)
    sigma = torch.linalg.eigvals((B.T @ B) @ (A @ A.T)).real.sqrt().sort(descending=True).values
    assert share == pytest.approx(float(sigma[:2].square().sum() / sigma.square().sum()))
    torch.testing.assert_close(down.norm(dim=1) * up.norm(dim=0), sigma[:2])


def test_an_update_of_zeros_has_nothing_to_lose(tmp_path):
    adapter = trained(net(), DashConfig(rank=3, dash_k=0, target=["0", "2"]), launch=False)
    with torch.no_grad():
        for _, weights in adapter.weights():
            weights.B.zero_()
    written = export_states({"model": adapter_state(adapter)}, tmp_path, rank=2)
    assert written.rank == 1
    assert [layer.kept for layer in written.layers] == [1.0] * 3


def test_flux_layers_are_cut_as_the_file_has_them(tmp_path):
    """Queries, keys and values are one matrix in kohya's layout, and the file's rank is that matrix's."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"single_transformer_blocks": nn.ModuleList([nn.ModuleDict()])})
    attention = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("to_q", "to_k", "to_v")})
    model["single_transformer_blocks"][0]["attn"] = attention
    adapter = trained(model, DashConfig(rank=2, alpha=3, dash_k=2, target=["to_q", "to_k", "to_v"]))
    written = export_states({"transformer": adapter_state(adapter)}, tmp_path, "kohya", rank=5)
    ((A, B),) = layers_of(written.path, ".lora_down.weight", ".lora_up.weight").values()
    parts = [dense(weights) for _, weights in adapter.weights()]
    stacked = torch.cat([*parts, torch.zeros(32, 8, dtype=torch.float64)])  # the last is the MLP's, not trained
    nearest, share = truncated(stacked, 5)
    torch.testing.assert_close(B @ A, nearest, rtol=0, atol=1e-6 * float(stacked.norm()))
    assert len(A) == 5
    assert written.layers[0].kept == pytest.approx(share)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
def test_half_precision_moves_the_update_by_its_rounding(mixed, tmp_path, format, dtype, unit):
    written = export_states({"model": adapter_state(mixed)}, tmp_path, format, dtype)
    assert {t.dtype for key, t in load_file(written.path).items() if "lora" in key} == {dtype}
    down, up = (".lora_down.weight", ".lora_up.weight") if format == "kohya" else (".lora_A.weight", ".lora_B.weight")
    found = layers_of(written.path, down, up).values()
    for (A, B), (_, weights), told in zip(found, mixed.weights(), written.layers, strict=True):
        update = dense(weights)
        moved = float((B.flatten(1) @ A.flatten(1) - update).norm() / update.norm())
        assert told.rounded == pytest.approx(moved, rel=1e-3)
        assert 0 < moved < 3 * unit


def test_small_shifts_keep_their_digits_in_float16(tmp_path):
    """float16 has steps of 6e-8 below 6e-5: shifts of that size times a direction would be rounded away."""
    adapter = trained(net(), DashConfig(rank=0, dash_k=4, target=["0", "2"]))
    with torch.no_grad():
        for _, weights in adapter.weights():
            weights.dsigma.copy_(torch.tensor([1e-7, -3e-7, 2e-7, 7e-8]))
    written = export_states({"model": adapter_state(adapter)}, tmp_path, dtype=torch.float16)
    assert written.most_rounded().rounded < 1e-3


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    adapter = trained(net(), DashConfig(rank=1, dash_k=0, target=["0"]), launch=False)
    with torch.no_grad():
        adapter.layers["0"].weights("default").A.fill_(1e-9)
        adapter.layers["0"].weights("default").B.fill_(1e-9)
    with pytest.raises(ValueError, match=r"0 holds values too small for torch\.float16"):
        export_lora(adapter, tmp_path, dtype=torch.float16)
    export_lora(adapter, tmp_path, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="the rank of a file is 0"):
        export_lora(adapter, tmp_path, rank=0)


def test_a_reader_s_scale_is_one_though_the_format_has_no_such_number(tmp_path):
    """bfloat16 has no 261: a reader would scale the update by 260 / 261."""
    adapter = trained(nn.Sequential(nn.Linear(300, 300)), DashConfig(rank=258, dash_k=3, target=["0"]))
    written = export_states({"unet": adapter_state(adapter)}, tmp_path, "kohya", torch.bfloat16)
    alphas = [tensor for key, tensor in load_file(written.path).items() if key.endswith(".alpha")]
    assert [alpha.item() for alpha in alphas] == [261.0]


def test_heads_that_float16_cannot_hold_are_refused(tmp_path):
    adapter = trained(net(), DashConfig(rank=2, dash_k=0, target=["0"]))
    state = adapter_state(adapter)
    whole = {"head.weight": torch.full((2, 2), 7e4), "head.seen": torch.tensor(70000)}  # float16 ends at 65504
    with pytest.raises(ValueError, match=r"head\.weight holds .* too large"):
        export_states({"model": state}, tmp_path, "peft", torch.float16, whole)
    written = export_states({"model": state}, tmp_path, "peft", torch.bfloat16, whole)
    assert load_file(written.path)["base_model.model.head.seen"].item() == 70000

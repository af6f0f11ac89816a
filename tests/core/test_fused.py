"""The fused linear layer against the plain one, finite differences, and PyTorch's own derivatives of the formula."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dash_vision import DashConfig, inject
from dash_vision.core import fused
from dash_vision.core.layer import DashLinear
from dash_vision.core.weights import DashWeights

RANK, K = 3, 2


def adapted(dtype: torch.dtype = torch.float64, bias: bool = True, rank: int = RANK, k: int = K) -> DashLinear:
    """A launched layer 7 -> 5 whose parameters are all different from zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5, bias=bias)).to(dtype)
    model.requires_grad_(False)
    adapter = inject(model, DashConfig(rank=rank, alpha=2 * rank or None, dash_k=k, target=["0"]))
    layer = model[0]
    assert isinstance(layer, DashLinear)
    if k:
        adapter.launch()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    for module in layer.adapters.values():
        module.to(dtype)
    return layer


def weights(layer: DashLinear) -> DashWeights:
    return layer.weights(layer.enabled[0])


def formula(layer: DashLinear, x: Tensor) -> Tensor:
    """W x + b + (alpha / r) B A x + U diag(dsigma) V x, with every dense matrix formed."""
    w, base = weights(layer), layer.base
    dense = base.weight + w.scaling * w.B @ w.A + w.U @ torch.diag(w.dsigma) @ w.V
    return F.linear(x, dense, base.bias)


def gradients(layer: DashLinear, x: Tensor, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Output and gradients of x, A, B, dsigma under a loss that weighs every output differently."""
    x = x.detach().clone().requires_grad_()
    w = weights(layer)
    y = forward(x)
    loss = (y.double() * torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape)).sum()
    wanted = [x, *(p for p in (w.A, w.B, w.dsigma) if p.requires_grad)]  # empty ones do not
    return [y, *torch.autograd.grad(loss, wanted, materialize_grads=True)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rank", "k"), [(RANK, K), (RANK, 0), (0, K)])
@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7), (2, 2, 3, 7), (5, 4, 7), (0, 7)])
def test_it_equals_the_dense_formula_and_its_derivatives(shape, rank: int, k: int, bias: bool) -> None:
    layer = adapted(bias=bias, rank=rank, k=k)
    x = torch.randn(shape, dtype=torch.float64)
    assert fused.applies(layer.base, weights(layer), x)
    for found, expected in zip(
        gradients(layer, x, layer), gradients(layer, x, lambda x: formula(layer, x)), strict=True
    ):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tokens", [8, 40])
def test_no_more_is_kept_for_the_backward_pass_than_lora_keeps(tokens: int) -> None:
    layer = adapted()
    own = {t.data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    x = torch.randn(tokens, 7, dtype=torch.float64)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    beside = [t for t in kept if t.data_ptr() not in own | {x.data_ptr()}]
    assert sum(t.untyped_storage().nbytes() for t in beside) <= 8 * RANK * min(tokens, 7 + 5)  # A x, in doubles


def test_under_autocast_no_copy_of_the_weight_is_kept() -> None:
    layer = adapted(torch.float32)
    kept: list[Tensor] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        layer(torch.randn(4, 7))
    wide = [t for t in kept if t.shape == layer.base.weight.shape]
    assert [t.data_ptr() for t in wide] == [layer.base.weight.data_ptr()]


def test_a_parameter_changed_before_its_backward_pass_is_refused_not_wrong() -> None:
    layer = adapted()
    y = layer(torch.randn(4, 7, dtype=torch.float64))
    with torch.no_grad():
        weights(layer).A.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_finite_differences() -> None:
    layer = adapted()
    w = weights(layer)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)

    def call(*_: Tensor) -> Tensor:
        return fused.linear(layer.base, w, x)

    assert torch.autograd.gradcheck(call, (x, w.A, w.B, w.dsigma))


def test_strides_do_not_matter() -> None:
    layer = adapted()
    x = torch.randn(7, 4, 3, dtype=torch.float64).permute(2, 1, 0)
    assert not x.is_contiguous()
    for found, expected in zip(
        gradients(layer, x, layer), gradients(layer, x, lambda x: formula(layer, x)), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    layer = adapted()
    w = weights(layer)
    w.A.requires_grad_(False)
    x = torch.randn(4, 7, dtype=torch.float64)
    layer(x).sum().backward()
    assert x.grad is None
    assert w.A.grad is None
    assert w.B.grad is not None
    assert w.dsigma.grad is not None
    assert layer.base.weight.grad is None


def test_before_the_launch_the_shifts_have_a_zero_gradient_not_none() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5)).requires_grad_(False)
    inject(model, DashConfig(rank=RANK, dash_k=K, target=["0"]))
    model(torch.randn(4, 7)).sum().backward()
    gradient = weights(model[0]).dsigma.grad
    assert gradient is not None
    assert torch.equal(gradient, torch.zeros(K))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_its_dtype_and_parameters_keep_theirs(stored: torch.dtype) -> None:
    layer = adapted(torch.float32)
    layer.base.to(stored)
    exact = adapted(torch.float64)
    x = torch.randn(16, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused.applies(layer.base, weights(layer), x)
        found = gradients(layer, x, layer)
        plain = gradients(layer, x, lambda x: layer._add_update(x, layer.base(x), weights(layer)))
    assert [t.dtype for t in found] == [torch.bfloat16, *[torch.float32] * 4]
    expected = gradients(exact, x.double(), lambda x: formula(exact, x))
    for one, other, truth in zip(found, plain, expected, strict=True):
        scale = truth.abs().max()
        assert (one.double() - truth).abs().max() < 0.03 * scale  # a few roundings to eight bits
        assert (other.double() - truth).abs().max() < 0.03 * scale


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    from torch.utils.checkpoint import checkpoint

    layer = adapted()
    x = torch.randn(4, 7, dtype=torch.float64)
    again = gradients(layer, x, lambda x: checkpoint(layer, x, use_reentrant=False))
    for found, expected in zip(again, gradients(layer, x, layer), strict=True):
        assert torch.equal(found, expected)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    layer = adapted()
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


class Doubled(nn.Linear):
    """A layer with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_that_are_more_than_a_frozen_linear_keep_their_own_forward_pass() -> None:
    x = torch.randn(4, 7, dtype=torch.float64)
    hooked = adapted()
    seen: list[Tensor] = []
    hooked.base.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(hooked(x), formula(hooked, x))
    assert len(seen) == 1

    trained = adapted()
    trained.base.weight.requires_grad_(True)
    trained(x).sum().backward()
    assert trained.base.weight.grad is not None

    model = nn.Sequential(Doubled(7, 5)).double()
    with pytest.raises(ValueError, match="Doubled does more than a plain layer with its weight"):
        inject(model, DashConfig(rank=RANK, dash_k=0, target=["0"]))


def test_dropout_applies_while_training_and_not_after() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5)).requires_grad_(False)
    inject(model, DashConfig(rank=RANK, dash_k=0, dropout=0.5, target=["0"]))
    w, x = weights(model[0]), torch.randn(4, 7)
    assert not fused.applies(model[0].base, w, x)
    model.eval()
    assert fused.applies(model[0].base, w, x)
    with torch.no_grad():
        assert not fused.applies(model[0].base, w, x)


def test_an_activation_may_work_in_place_on_the_output() -> None:
    layer = adapted()
    x = torch.randn(2, 4, 7, dtype=torch.float64)
    for found, expected in zip(
        gradients(layer, x, nn.Sequential(layer, nn.LeakyReLU(inplace=True))),
        gradients(layer, x, lambda x: F.leaky_relu(formula(layer, x))),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_transforms_of_torch_func_and_tracing_see_the_plain_operations() -> None:
    layer = adapted()
    x, tangent = torch.randn(2, 4, 7, dtype=torch.float64)
    (dense,) = (formula(layer, torch.eye(7, dtype=torch.float64)) - layer.base.bias).T[None]
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (tangent,))[1], tangent @ dense.T)
    torch.testing.assert_close(torch.func.grad(lambda x: layer(x).sum())(x), dense.sum(0).expand(4, 7))
    torch.testing.assert_close(torch.func.vmap(layer)(x), formula(layer, x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls tracing deprecated
        traced = torch.jit.trace(layer, (x,))
    torch.testing.assert_close(traced(tangent), formula(layer, tangent))


def test_an_exchanged_forward_pass_is_called() -> None:
    """Offloading by accelerate exchanges it on the module."""
    layer = adapted()
    x = torch.randn(4, 7, dtype=torch.float64)
    plain = layer.base.forward
    layer.base.forward = lambda x: plain(x) + 1
    torch.testing.assert_close(layer(x), formula(layer, x) + 1)


def test_hooks_of_all_modules_see_the_frozen_layer() -> None:
    layer = adapted()
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        layer(torch.randn(4, 7, dtype=torch.float64))
    finally:
        handle.remove()
    assert layer.base in seen


def test_autocast_leaves_double_precision_alone() -> None:
    layer = adapted()
    x = torch.randn(4, 7, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, formula(layer, x))

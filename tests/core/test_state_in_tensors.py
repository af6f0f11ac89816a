"""What moves tensors alone keeps an adapter's phase: launched or not, enabled or not, merged or not."""

import copy

import pytest
import torch
from accelerate import Accelerator, cpu_offload
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from timm.utils import ModelEmaV3
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dash_vision import DashConfig, DashSchedule, export_lora, inject, load_adapter

CONFIG = DashConfig(rank=2, dash_k=3, target=["0", "2"])


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))


def inputs(seed=0):
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))


def learn(model, adapter, steps, schedule=None, after=lambda: None):
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.2)
    for step in range(steps):
        model(inputs(step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule:
            schedule.step()
        after()


def launched():
    model = network()
    adapter = inject(model, CONFIG)
    learn(model, adapter, 6, DashSchedule(adapter, 2))
    return model, adapter


def dense(adapter):
    """The update of every layer by the formula, in float64."""
    found = {}
    for module, w in adapter.weights():
        A, B, U, V, dsigma = (t.detach().double() for t in (w.A, w.B, w.U, w.V, w.dsigma))
        found[module] = B @ A + U @ torch.diag(dsigma) @ V
    return found


def test_a_models_state_dict_carries_the_launch(tmp_path):
    model, adapter = launched()
    other = network()
    twin = inject(other, CONFIG)
    other.load_state_dict(model.state_dict())
    assert twin.launched
    files = [export_lora(a, tmp_path / name, "peft") for a, name in ((adapter, "a"), (twin, "b"))]
    assert files[0].read_bytes() == files[1].read_bytes()
    before = twin.state_dict()["0.indices"].clone()
    schedule = DashSchedule(twin, prelaunch_steps=1)
    assert schedule.step() is None
    assert torch.equal(twin.state_dict()["0.indices"], before)
    with pytest.raises(RuntimeError, match="launched already"):
        twin.launch()


def test_a_state_from_before_the_launch_takes_a_launched_adapter_back():
    model = network()
    adapter = inject(model, CONFIG)
    before = copy.deepcopy(model.state_dict())
    learn(model, adapter, 4, DashSchedule(adapter, 2))
    model.load_state_dict(before)
    assert not adapter.launched
    adapter_schedule = DashSchedule(adapter, prelaunch_steps=1)
    learn(model, adapter, 1)
    assert adapter_schedule.step() is not None


def test_tensors_that_are_exchanged_instead_of_written_count_too():
    model, _ = launched()
    other = network()
    twin = inject(other, CONFIG)
    other.load_state_dict(model.state_dict(), assign=True)
    assert twin.launched
    assert torch.equal(other(inputs()), model(inputs()))


def test_accelerates_load_state_carries_the_launch(tmp_path):
    model, _ = launched()
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model)
    accelerator.save_state(tmp_path / "state")
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    other = network()
    twin = inject(other, CONFIG)
    accelerator.prepare(other)
    accelerator.load_state(tmp_path / "state")
    assert twin.launched
    assert torch.equal(other(inputs()), model(inputs()))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_merged_state_is_not_applied_twice(tmp_path):
    model, adapter = launched()
    plain = model(inputs())
    adapter.merge()
    merged = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    other = network()
    twin = inject(other, CONFIG)
    other.load_state_dict(merged)
    torch.testing.assert_close(other(inputs()), plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other[0].weight, model[0].weight, rtol=0, atol=0)
    # What is learned is all there; what the weights were before the merge is not.
    for module, update in dense(twin).items():
        assert torch.equal(update, dense(adapter)[module])
    files = [export_lora(a, tmp_path / name, "peft") for a, name in ((adapter, "a"), (twin, "b"))]
    assert files[0].stat().st_size == files[1].stat().st_size
    for act in (twin.unmerge, twin.remove):
        with pytest.raises(RuntimeError, match="original ones are not at hand"):
            act()
    assert torch.equal(other[0].base.weight, merged["0.base.weight"])


def test_an_unmerged_state_makes_a_merged_model_unmerged():
    model, adapter = launched()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    plain = model(inputs())
    adapter.merge()
    model.load_state_dict(state)
    assert torch.equal(model(inputs()), plain)
    adapter.merge()
    adapter.unmerge()
    assert torch.equal(model[0].base.weight, state["0.base.weight"])


def test_a_disabled_adapter_stays_disabled_where_its_state_is_loaded():
    model, adapter = launched()
    adapter.disable()
    other = network()
    inject(other, CONFIG)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs()), network()(inputs()))


@pytest.mark.parametrize("which", ["torch", "torch EMA", "diffusers", "timm"])
def test_averages_over_the_launch_have_the_directions_and_the_mean_of_the_shifts(which):
    """Averaged by hand: A, B and dsigma over the steps; U, V and indices are those of the model."""
    model = network()
    adapter = inject(model, CONFIG)
    decay = 0.8
    averages = {
        "torch": lambda: AveragedModel(model),
        "torch EMA": lambda: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)),
        "diffusers": lambda: EMAModel(model.parameters(), decay=decay, use_ema_warmup=False, min_decay=decay),
        "timm": lambda: ModelEmaV3(model, decay=decay, exclude_buffers=True),
    }
    average = averages[which]()
    history = []

    def update():
        history.append({name: p.detach().clone() for name, p in adapter.named_parameters()})
        if which == "diffusers":
            average.step(model.parameters())
        elif which == "timm":
            average.update(model)
        else:
            average.update_parameters(model)

    learn(model, adapter, 6, DashSchedule(adapter, 3), update)
    # optimizer.step() comes before the schedule's: the launch changes no parameter, so that history is exact.
    if which == "diffusers":
        mean_model = copy.deepcopy(model)
        average.copy_to(mean_model.parameters())
    else:
        mean_model = average.module
    mean = mean_model.dash_adapters["default"]
    assert mean.launched
    for module, w in mean.weights():
        original = adapter.layers[module].weights("default")
        assert torch.equal(w.indices, original.indices)
        torch.testing.assert_close(w.V, original.V, rtol=0, atol=0)
    if which == "torch":
        expected = {name: torch.stack([h[name] for h in history]).mean(0) for name in history[0]}
        for name, parameter in mean.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-4, atol=1e-7)
    mean_model(inputs())


@pytest.mark.parametrize("which", ["torch", "timm"])
def test_directions_that_were_averaged_with_zeros_are_an_error_and_no_result(which):
    model = network()
    adapter = inject(model, CONFIG)
    if which == "torch":
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        update = average.update_parameters
    else:
        average = ModelEmaV3(model, decay=0.9)
        update = average.update
    learn(model, adapter, 5, DashSchedule(adapter, 3), lambda: update(model))
    with pytest.raises(RuntimeError, match="copy the buffers"):
        average(inputs())
    model(inputs())


def test_averages_from_before_the_launch_are_as_usual_whatever_they_make_of_the_indices():
    model = network()
    adapter = inject(model, CONFIG)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    learn(model, adapter, 5, after=lambda: average.update_parameters(model))
    average(inputs())
    assert not average.module.dash_adapters["default"].launched
    assert average.module[0].enabled == ["default"]


def tensors(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.parametrize("merged", [False, True])
def test_a_copy_through_data_leaves_no_trace_and_counts_all_the_same(merged):
    """Some libraries' averages are written by tensor.data.copy_, which counts as no write."""
    model, adapter = launched()
    expected = model(inputs()).detach()
    if merged:
        adapter.merge()
    other = network()
    twin = inject(other, CONFIG)
    other(inputs())
    for name, tensor in tensors(other).items():
        tensor.data.copy_(tensors(model)[name].data)
    assert twin.launched
    torch.testing.assert_close(other(inputs()), expected)


def test_parameters_that_come_without_their_directions_are_an_error_and_no_result(tmp_path):
    """The trainable tensors alone are what many scripts save."""
    model, _ = launched()
    other = network()
    twin = inject(other, CONFIG)
    other(inputs())
    other.load_state_dict({k: p.detach() for k, p in model.named_parameters() if p.requires_grad}, strict=False)
    for use in (lambda: other(inputs()), lambda: twin.save(tmp_path / "adapter.safetensors"), twin.launch):
        with pytest.raises(RuntimeError, match="no directions for them"):
            use()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs()), model(inputs()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_directions_that_were_rounded_to_half_precision_are_directions(dtype):
    model, _ = launched()
    other = network()
    inject(other, CONFIG)
    other.load_state_dict(model.to(dtype).state_dict())
    assert torch.equal(other(inputs()), model.float()(inputs()))


def test_an_average_of_merged_and_unmerged_weights_is_an_error_and_no_result():
    model, adapter = launched()
    before = {key: t.double() for key, t in model.state_dict().items()}
    adapter.merge()
    mean = {key: ((before[key] + t.double()) / 2).to(t.dtype) for key, t in model.state_dict().items()}
    other = network()
    inject(other, CONFIG)
    other.load_state_dict(mean)
    with pytest.raises(RuntimeError, match="unmerge it before averaging"):
        other(inputs())


def test_inference_mode_offloading_and_vmap_compute_what_the_model_computes(tmp_path):
    model, adapter = launched()
    x = inputs()
    expected = model(x).detach()
    adapter.save(tmp_path / "adapter.safetensors")
    with torch.inference_mode():
        other = network()
        assert load_adapter(other, tmp_path / "adapter.safetensors").launched
        torch.testing.assert_close(other(x), expected)
    state = stack_module_state([copy.deepcopy(model), copy.deepcopy(model)])
    shell = copy.deepcopy(model).to("meta")
    both = vmap(lambda *state: functional_call(shell, state, (x,)))(*state)
    torch.testing.assert_close(both[1], expected)
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    assert adapter.layers["0"].weights("default").A.device.type == "meta"
    torch.testing.assert_close(model(x), expected)

"""LoRA-Dash on an ordinary PEFT LoRA model, so that any loop which trains a PeftModel has it.

    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    schedule = to_dash(model, dash_k=8, prelaunch_steps=100)
    optimizer = AdamW(p for p in model.parameters() if p.requires_grad)   # after to_dash: it adds the shifts
    ...
    schedule.step()                                                       # after every optimizer.step()
    save_as_lora(model, "out")                                            # a plain LoRA of rank r + k

Under transformers' Trainer or TRL's, give the schedule to `integrations.transformers.DashCallback` instead of stepping
it. The layer's part is a LoRA variant, which PEFT keeps for its own use: `to_dash` checks that the installed PEFT has
what it needs of them.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

import peft
import torch
from peft import PeftModel
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn

from ..core.config import DashConfig
from ..core.decompositions import Decompositions
from ..core.launch import LaunchReport, choose_directions, mean_relative_index
from ..core.loading import tensors_of
from ..core.quantized import is_quantized, keep_trainable
from ..core.schedule import DashSchedule
from ..core.sharding import is_sharded, whole
from ..core.weights import DashWeights, check_directions, device_of, kind_of, matrix_shape, weight_matrix
from ..files.errors import InputError
from ..files.fingerprints import probe_matrix
from ..files.lora import export_states
from ..files.native import KEYS, AdapterState

log = logging.getLogger(__name__)

# A folder beside PEFT's file, two levels deep: the Trainer takes folders one level deep for adapters.
PLAIN = "plain-lora"
_SHIFTS, _U, _V, _INDICES = "lora_dash_shifts", "lora_dash_U", "lora_dash_V", "lora_dash_indices"
# Ways of PEFT's to begin A and B that take from the frozen weight what they begin with.
_CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class DashVariant(LoraVariant):
    """PEFT's LoRA layer with the shifts of k singular values: y = W x + s B A x + U (dsigma * V x)."""

    def supports_lora_conversion(self) -> bool:
        """PEFT would convert B A alone; `save_as_lora` writes everything, exactly."""
        return False

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Nothing: `to_dash` adds the tensors to a layer that exists already."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """result [..., out] of the frozen layer plus both updates of x [..., in]."""
        name = active_adapter
        _check(module, name)
        x = module.lora_dropout[name](x)  # one draw for both
        low = module.lora_B[name](module.lora_A[name](x)) * module.scaling[name]
        V, U = getattr(module, _V)[name].to(x.dtype), getattr(module, _U)[name].to(x.dtype)
        shifted = (x @ V.T) * getattr(module, _SHIFTS)[name].to(x.dtype)
        return result + low + shifted @ U.T

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight with the update in it."""
        return orig_weight + _delta(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """The same in place."""
        orig_weight.data += _delta(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight without it, up to rounding."""
        return orig_weight - _delta(module, active_adapter).to(orig_weight.dtype)


def _check(module: Any, name: str) -> None:
    """Raises RuntimeError for directions that are none; looked at after somebody wrote to them or exchanged them."""
    V = getattr(module, _V)[name]
    seen = module.__dict__.setdefault("lora_dash_seen", {})
    known, version = seen.get(name, (None, None))
    now = None if V.is_inference() else V._version
    if torch.compiler.is_compiling() or (known is V and version == now):
        return
    seen[name] = V, now
    check_directions(bool((getattr(module, _INDICES)[name] >= 0).any()), V, getattr(module, _SHIFTS)[name])


def _delta(module: Any, name: str) -> Tensor:
    """s B A + U diag(dsigma) V in the layout of the frozen weight."""
    _check(module, name)
    shifts = (getattr(module, _U)[name] * getattr(module, _SHIFTS)[name]) @ getattr(module, _V)[name]
    return module.get_delta_weight(name) + (shifts.T if module.fan_in_fan_out else shifts)


def to_dash(
    model: PeftModel,
    dash_k: int = 8,
    prelaunch_steps: int = 100,
    eps: float = 1e-6,
    selection: str = "change_rate",
    optimizer: Any = None,
    seed: int = 0,
) -> DashSchedule:
    """Give the active LoRA adapter of a PEFT model the dash, in place: shifts dsigma [k] for every adapted layer.

    model: with plain LoRA on linear layers, freshly made or trained already. The output does not change until the
    shifts are trained. Make the optimizer afterwards: the shifts are new parameters. dash_k, eps, selection: see
    DashConfig. prelaunch_steps, optimizer, seed: see DashSchedule, which is returned: `step()` it after every optimizer
    step.

    From here on `model.save_pretrained` also writes the plain LoRA of rank r + k, since PEFT alone reads the folder
    without the shifts. Raises InputError where the adapter is of another kind, and where the installed PEFT lacks what
    this builds on.
    """
    adapter = PeftAdapter(model, *_plain_lora(model), dash_k, eps, selection)
    adapter.add_shifts()
    keep_trainable(model)
    cast(Any, model).save_pretrained = _SavePlainToo(adapter)
    cast(Any, model).load_adapter = _LoadAll(adapter)
    cast(Any, model.base_model).add_weighted_adapter = _refuse_weighted
    return DashSchedule(cast(Any, adapter), prelaunch_steps, optimizer, seed)


def save_as_lora(model: PeftModel, folder: str | PathLike[str], dtype: torch.dtype = torch.float32) -> Path:
    """Write the model's LoRA-Dash adapter as a plain LoRA of rank r + k in PEFT's layout: exact, for any reader.

    Returns the path of the weights file. Raises InputError when the model has no dash (see `to_dash`).
    """
    return cast(Path, _save_as_lora(model, folder, dtype))


def _save_as_lora(
    model: PeftModel, folder: str | PathLike[str], dtype: torch.dtype = torch.float32, main: bool = True
) -> Path | None:
    """save_as_lora, on every process of a split model, which has to be gathered; the main one writes."""
    adapter = _adapter_of(model)
    state, heads = adapter.state(), _trained_whole(model, adapter.name)
    if not main:
        return None
    config = model.peft_config[adapter.name]
    entries = {
        "base_model_name_or_path": config.base_model_name_or_path,
        "task_type": config.task_type and str(getattr(config.task_type, "value", config.task_type)),
    }
    return export_states({"model": state}, folder, "peft", dtype, heads, peft=entries).path


def from_lora(model: PeftModel, folder: str | PathLike[str], **settings: Any) -> DashSchedule:
    """Go on from a folder that `save_pretrained` of a LoRA-Dash model wrote: the counterpart of it.

    model: PeftModel.from_pretrained(base, folder, is_trainable=True), into which PEFT has read A and B alone. The
    shifts and their directions are read from the folder. settings: of `to_dash`; dash_k is the folder's. Raises
    InputError where the folder has no shifts, or not this model's.
    """
    from safetensors.torch import load_file

    path = Path(folder) / "adapter_model.safetensors"
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a folder that save_pretrained of a LoRA-Dash model wrote")
    tensors = {key: tensor for key, tensor in load_file(path).items() if ".lora_dash_" in key}
    shifts = [tensor for key, tensor in tensors.items() if key.endswith(_SHIFTS)]
    if not shifts:
        raise InputError(f"{path} is a plain LoRA without shifts; PeftModel.from_pretrained reads all of it")
    k = max(len(tensor) for tensor in shifts)
    if settings.pop("dash_k", k) != k:
        raise InputError(f"{path} has {k} shifts a layer; leave out dash_k, which is the folder's")
    schedule = to_dash(model, k, **settings)
    adapter = _adapter_of(model)
    own = {
        f"base_model.model.{module}.{key}": tensor
        for module, w in adapter.weights()
        for key, tensor in ((_SHIFTS, w.dsigma.data), (_U, w.U), (_V, w.V), (_INDICES, w.indices))
    }
    if own.keys() != tensors.keys() or any(own[key].shape != tensor.shape for key, tensor in tensors.items()):
        raise InputError(f"{path} has shifts of other layers than this model's adapter; load it into its own base")
    for key, tensor in tensors.items():
        own[key].copy_(tensor)
    return schedule


# -- what a schedule, a launch and the files ask of an adapter


class PeftAdapter:
    """A PEFT LoRA adapter as DashSchedule and the file formats see one: the counterpart of core.adapter.Adapter."""

    def __init__(
        self, model: PeftModel, name: str, layers: dict[str, LoraLayer], dash_k: int, eps: float, selection: str
    ) -> None:
        settings = cast(Any, model.peft_config[name])
        first = next(iter(layers.values()))
        rank, scaling = int(first.r[name]), float(first.scaling[name])
        self.model, self.name = model, name
        self.config = DashConfig(rank, scaling * rank, dash_k, list(layers), settings.lora_dropout, eps, selection)
        self.layers = {module: _Layer(layer, name) for module, layer in layers.items()}

    def add_shifts(self) -> None:
        """Give every layer its tensors, zero until the launch, and the forward pass that adds them."""
        for layer in self.layers.values():
            layer.add_shifts(self.config.dash_k)
        self.model.__dict__["dash_adapter"] = self

    def weights(self) -> Iterator[tuple[str, _Weights]]:
        """(module name, tensors) of every layer."""
        return ((module, layer.weights(self.name)) for module, layer in self.layers.items())

    @property
    def launched(self) -> bool:
        """Whether the directions are chosen: the tensors say it."""
        return any(bool((w.indices >= 0).any()) for _, w in self.weights())

    def launch(self, seed: int = 0) -> LaunchReport:
        """Choose every layer's directions; see Adapter.launch, which computes the same."""
        start, c = time.perf_counter(), self.config
        layers = cast(Any, self.layers)
        for module, (indices, U, V) in choose_directions(
            layers, self.name, c.eps, c.selection, seed, Decompositions()
        ).items():
            w = self.layers[module].weights(self.name)
            w.indices.copy_(indices)
            w.U.copy_(U)
            w.V.copy_(V)
        place = mean_relative_index(w for _, w in self.weights())
        return LaunchReport(len(self.layers), time.perf_counter() - start, place)

    def state_dict(self, keys: Collection[str] = KEYS) -> dict[str, Tensor]:
        """The tensors by "module.key", those of `keys`; not copied."""
        return {f"{m}.{key}": whole(getattr(w, key)) for m, w in self.weights() for key in keys}

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError when a tensor of `state` is missing, unknown or of another shape."""
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[key].shape != tensor.shape for key, tensor in state.items()):
            raise ValueError("the state is of another adapter: its layers or shapes differ")

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Write `state` into the adapter in place; raises as `check_state`."""
        self.check_state(state)
        own = self.state_dict()
        for key, tensor in state.items():
            own[key].copy_(tensor)

    @property
    def sharded(self) -> bool:
        """Whether FSDP has split the model over the processes."""
        return any(is_sharded(w.A) for _, w in self.weights())

    def place(self, folder: str | PathLike[str]) -> Path:
        """Where PEFT writes the adapter in a folder: one that is not called "default" has a folder of its own."""
        return Path(folder) / ("" if self.name == "default" else self.name)

    def write_plain(self, folder: str | PathLike[str], main: bool = True) -> None:
        """Write the plain LoRA beside PEFT's files in `folder`, and a note of it; every process of a split model has
        to call it, and the main one writes."""
        rank = self.config.rank + (max(w.dsigma.numel() for _, w in self.weights()) if self.launched else 0)
        plain = Path(PLAIN) / f"rank-{rank}"
        _save_as_lora(self.model, self.place(folder) / plain, main=main)
        if main:
            (self.place(folder) / "DASH.md").write_text(_NOTE.format(plain=f"`{plain}`"))

    def state(self) -> AdapterState:
        """A snapshot on the CPU, as native files hold it. Raises RuntimeError for averaged directions, and for shifts
        without any."""
        for _, w in self.weights():
            check_directions(bool((w.indices >= 0).any()), w.V, w.dsigma)
        tensors = {key: t.detach().to("cpu", torch.float32, copy=True) for key, t in self.state_dict().items()}
        tensors = {k: t.to(torch.int64) if k.endswith(".indices") else t.contiguous() for k, t in tensors.items()}
        kinds = {module: kind_of(layer.base) for module, layer in self.layers.items()}
        probes = {module: probe_matrix(whole(layer.frozen_matrix())) for module, layer in self.layers.items()}
        return AdapterState(self.config.to_dict(), tensors, kinds, probes)


class _Weights:
    """One layer's tensors by the names of core.weights.DashWeights; choosing directions is that class's own code."""

    choose = DashWeights.choose
    factors = DashWeights.factors

    def __init__(self, layer: Any, name: str) -> None:
        self.A: Tensor
        self.B: Tensor
        self.A, self.B = layer.lora_A[name].weight, layer.lora_B[name].weight
        self.dsigma: nn.Parameter = getattr(layer, _SHIFTS)[name]
        self.U, self.V, self.indices = (getattr(layer, key)[name] for key in (_U, _V, _INDICES))
        self.scaling, self.k = float(layer.scaling[name]), len(self.dsigma)


class _Layer:
    """A PEFT layer as the launch sees one."""

    def __init__(self, layer: LoraLayer, name: str) -> None:
        self.layer, self.name = layer, name
        self.base = layer.get_base_layer()
        self.quantized, self.precise_weight = is_quantized(self.base), None
        self.out_features, self.in_features = matrix_shape(self.base)

    def weights(self, name: str) -> _Weights:
        """Read anew each time: whatever moves the model replaces its tensors."""
        return _Weights(self.layer, name)

    def frozen_matrix(self) -> Tensor:
        """W [out, in], without what is merged."""
        if self.layer.merged:
            raise RuntimeError("the adapter is merged into the weights; call unmerge_adapter() first")
        return weight_matrix(self.base)

    def add_shifts(self, k: int) -> None:
        layer, device = cast(Any, self.layer), device_of(self.base)
        k = min(k, self.out_features, self.in_features)
        if not hasattr(layer, _SHIFTS):
            setattr(layer, _SHIFTS, nn.ParameterDict())
            for key in (_U, _V, _INDICES):
                setattr(layer, key, BufferDict(persistent=True))
            layer.adapter_layer_names = (*layer.adapter_layer_names, _SHIFTS)
            layer.other_param_names = (*layer.other_param_names, _U, _V, _INDICES)
        getattr(layer, _SHIFTS)[self.name] = nn.Parameter(torch.zeros(k, device=device))
        getattr(layer, _U)[self.name] = torch.zeros(self.out_features, k, device=device)
        getattr(layer, _V)[self.name] = torch.zeros(k, self.in_features, device=device)
        getattr(layer, _INDICES)[self.name] = torch.full((k,), -1, dtype=torch.int64, device=device)
        layer.lora_variant[self.name] = DashVariant()
        layer.supports_lora_conversion = _unsupported  # PEFT asks the variant itself from 0.21 on
        if self.quantized:  # some of PEFT's layers would merge B A alone into them
            layer.merge = _refuse_merging


# -- what is refused


def _plain_lora(model: PeftModel) -> tuple[str, dict[str, LoraLayer]]:
    """(name, layers) of the active adapter. Raises InputError for all but plain LoRA on linear layers."""
    if not _asks_variants(PeftLinear):
        raise InputError(
            f"PEFT {peft.__version__} asks no LoRA variants in its linear layer; install peft 0.18 to 0.21, or use "
            "dash_vision.inject without PEFT"
        )
    if not isinstance(model, PeftModel):
        raise InputError(f"to_dash takes a PeftModel, not a {type(model).__name__}; make one by get_peft_model")
    name = model.active_adapter
    if not isinstance(name, str):
        raise InputError(f"{len(name)} adapters are active; set_adapter() to the one that is to have the dash")
    if "dash_adapter" in model.__dict__:
        raise InputError("the model has the dash already; its schedule is the one that to_dash returned before")
    start = getattr(model.peft_config[name], "init_lora_weights", True)
    if isinstance(start, str) and start.startswith(_CHANGES_WEIGHTS):
        raise InputError(
            f"init_lora_weights={start!r} changes the frozen weights, so that the plain LoRA would not fit the base; "
            "give LoraConfig init_lora_weights=True"
        )
    prefix = "base_model.model."
    layers: dict[str, LoraLayer] = {}
    for module, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or name not in layer.r:
            continue
        if not _is_linear(layer) or layer.lora_bias.get(name):
            kind = f"{type(layer).__module__.rpartition('.')[2]}.{type(layer).__name__}"
            raise InputError(
                f"{module} is PEFT's {kind}{' with lora_bias' if _is_linear(layer) else ''}; the dash takes plain LoRA "
                "on linear layers: give LoraConfig other target_modules"
            )
        if name in layer.lora_variant:
            raise InputError(f"{module} has a variant of LoRA ({type(layer.lora_variant[name]).__name__}) already")
        if is_sharded(cast(Any, layer.lora_A[name]).weight):
            raise InputError("the model is split over the processes; call to_dash before it is wrapped")
        layers[module.removeprefix(prefix)] = layer
    if not layers:
        raise InputError(f"the adapter {name!r} has no LoRA on a linear layer; give LoraConfig other target_modules")
    sizes = {(layer.r[name], layer.scaling[name]) for layer in layers.values()}
    if len(sizes) > 1:
        raise InputError(
            f"the layers have several ranks or scales ({sorted(sizes)[:3]}); leave out rank_pattern and alpha_pattern"
        )
    return name, layers


def _asks_variants(kind: Any) -> bool:
    """Whether a layer of PEFT's leaves its forward pass and its merging to a variant, where it has one. PEFT does not
    promise it, so its code is asked."""
    return all("lora_variant" in inspect.getsource(f) for f in (kind.forward, kind.merge, kind.unmerge))


def _is_linear(layer: LoraLayer) -> bool:
    """Whether it is PEFT's layer around a linear one: a plain one, or one of its classes around a quantized one that
    ask variants too."""
    if type(layer) is PeftLinear:
        return True
    return is_quantized(layer.get_base_layer()) and "lora_variant" in inspect.getsource(cast(Any, type(layer)).forward)


def _adapter_of(model: PeftModel) -> PeftAdapter:
    adapter = model.__dict__.get("dash_adapter")
    if adapter is None or adapter.name not in model.peft_config:
        raise InputError("the model has no dash; call to_dash(model) first")
    return cast(PeftAdapter, adapter)


# -- files


def _trained_whole(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """ "module.key" -> tensor of PEFT's modules_to_save."""
    wrappers = {
        name.removeprefix("base_model.model."): module.modules_to_save[adapter]
        for name, module in model.named_modules()
        if hasattr(module, "modules_to_save") and adapter in (module.modules_to_save or {})
    }
    return tensors_of(wrappers)


class _SavePlainToo:
    """A model's save_pretrained that writes the plain LoRA beside PEFT's own file.

    An object and no closure: of a copy of the model (an EMA's, say) it is the copy's own.
    """

    def __init__(self, adapter: PeftAdapter) -> None:
        self.adapter = adapter

    def __call__(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """As PeftModel.save_pretrained."""
        model = self.adapter.model
        type(model).save_pretrained(model, save_directory, *args, **kwargs)
        name = self.adapter.name
        written = name in model.peft_config and name in (kwargs.get("selected_adapters") or [name])
        if written and self.adapter.sharded:
            # Not every process comes here, so that nothing can be gathered; DashCallback writes it a moment later.
            if kwargs.get("is_main_process", True):
                (self.adapter.place(save_directory) / "DASH.md").write_text(_NOTE.format(plain=_BY_HAND))
        elif written and kwargs.get("is_main_process", True):
            self.adapter.write_plain(save_directory)


class _LoadAll:
    """A model's load_adapter that says so when PEFT leaves out the shifts of a LoRA-Dash adapter."""

    def __init__(self, adapter: PeftAdapter) -> None:
        self.adapter = adapter

    def __call__(self, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """As PeftModel.load_adapter."""
        model = self.adapter.model
        result = type(model).load_adapter(model, model_id, adapter_name, *args, **kwargs)
        if any(".lora_dash_" in key for key in getattr(result, "unexpected_keys", ())):
            log.warning(
                "the shifts of %s were not loaded, since the adapter %r has no dash: load the plain LoRA in the folder "
                "%s beside it instead",
                *(model_id, adapter_name, PLAIN),
            )
        return result


def _refuse_weighted(*args: Any, **kwargs: Any) -> None:
    """In place of PEFT's add_weighted_adapter, which combines A and B alone."""
    raise InputError(
        "add_weighted_adapter would leave out the shifts of singular values; load the plain LoRAs that save_as_lora "
        "writes into a model of PEFT alone, and combine those"
    )


def _unsupported(*args: Any, **kwargs: Any) -> bool:
    """In place of a layer's supports_lora_conversion: PEFT would convert B A alone."""
    return False


def _refuse_merging(*args: Any, **kwargs: Any) -> None:
    """In place of a quantized layer's merge."""
    raise InputError(
        "cannot merge into a quantized weight, whose rounding would swallow the update; write the adapter by "
        "save_as_lora, and merge that into the unquantized model"
    )


_BY_HAND = "the folder that `save_as_lora` writes when every process calls it"
_NOTE = """# A LoRA-Dash adapter

`adapter_model.safetensors` in this folder holds LoRA's factors and, beside them, the shifts of singular values that
LoRA-Dash learned. PEFT alone reads the factors and leaves the shifts out.

- To use the trained model with PEFT alone, load {plain}: a plain LoRA that holds everything.
- To go on training, load this folder with `PeftModel.from_pretrained(base, folder, is_trainable=True)` and call
  `dash_vision.integrations.peft.from_lora(model, folder)`.
"""

"""Quantized layers of each backend that is installed here and computes on a CPU."""

import importlib

import pytest
import torch
from torch import nn

# By name: the module to import, and the command that installs it.
BACKENDS = {
    "bnb-nf4": ("bitsandbytes", "pip install 'dash-vision[quantization]'"),
    "bnb-int8": ("bitsandbytes", "pip install 'dash-vision[quantization]'"),
    "torchao-int8": ("torchao", "pip install 'dash-vision[quantization]'"),
    "torchao-fp8": ("torchao", "pip install 'dash-vision[quantization]'"),
    "gguf-q8": ("gguf", "pip install 'dash-vision[quantization]'"),
    "quanto-int8": ("optimum.quanto", "pip install optimum-quanto"),
    "quanto-fp8": ("optimum.quanto", "pip install optimum-quanto"),
}
WORDS = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}  # of --quantize


def need(backend):
    """Skip the test where the backend is not installed."""
    module, command = (
        BACKENDS[backend] if backend in BACKENDS else (WORDS[backend], "pip install 'dash-vision[quantization]'")
    )
    try:
        importlib.import_module(module)
    except ImportError:
        pytest.skip(f"needs {module}: {command}")


def quantize_layer(layer, backend):
    """nn.Linear -> the backend's frozen layer of the same weight, as diffusers makes it."""
    need(backend)
    layer.requires_grad_(False)
    dtype = layer.weight.dtype
    return _MAKERS[backend](layer, dtype)


def _bnb(kind):
    def make(layer, dtype):
        import bitsandbytes as bnb

        out, in_, bias = layer.out_features, layer.in_features, layer.bias is not None
        if kind == "nf4":
            made = bnb.nn.Linear4bit(in_, out, bias=bias, compute_dtype=dtype, quant_type="nf4")
            made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
        else:
            made = bnb.nn.Linear8bitLt(in_, out, bias=bias, has_fp16_weights=False)
            made.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        made.bias = layer.bias
        return made.to("cpu").requires_grad_(False)

    return make


def _torchao(name):
    def make(layer, dtype):
        from torchao import quantization

        quantization.quantize_(layer, getattr(quantization, name)())
        return layer.requires_grad_(False)

    return make


def _quanto(name):
    def make(layer, dtype):
        import optimum.quanto as quanto

        made = quanto.QLinear.from_module(layer, weights=getattr(quanto, name))
        made.freeze()
        return made.requires_grad_(False)

    return make


def _gguf(layer, dtype):
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    data = torch.from_numpy(gguf.quantize(layer.weight.float().numpy(), kind))
    made = GGUFLinear(layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=dtype)
    made.weight, made.bias = GGUFParameter(data, quant_type=kind), layer.bias
    return made


_MAKERS = {
    "bnb-nf4": _bnb("nf4"),
    "bnb-int8": _bnb("int8"),
    "torchao-int8": _torchao("Int8WeightOnlyConfig"),
    "torchao-fp8": _torchao("Float8WeightOnlyConfig"),
    "gguf-q8": _gguf,
    "quanto-int8": _quanto("qint8"),
    "quanto-fp8": _quanto("qfloat8"),
}


class Pair(nn.Module):
    """Two linear layers, 64 -> 128 -> 64, for tests that quantize both."""

    def __init__(self, backend, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(64, 128, dtype=dtype), nn.Linear(128, 64, bias=False, dtype=dtype)
        self.original = {name: layer.weight.detach().clone() for name, layer in self.named_children()}
        self.first, self.second = quantize_layer(self.first, backend), quantize_layer(self.second, backend)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def save_gguf(network, path):
    """A network's tensors by diffusers' names in a GGUF file, matrices in eight bits where their width allows it."""
    need("gguf-q8")
    import gguf

    writer = gguf.GGUFWriter(path, "flux")
    for name, tensor in network.state_dict().items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

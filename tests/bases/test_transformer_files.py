"""Single files that hold the transformer of a flow-matching base alone; all else comes from --single_file_config."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dash_vision.bases import identity
from dash_vision.bases.loading import find_family, load_again, load_base
from dash_vision.bases.snippet import loading_lines
from dash_vision.files.errors import InputError
from tests.support.flow import VELOCITIES

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def another(tiny, tmp_path_factory):
    """(a file with the transformer's tensors of a tiny base, changed; the folder of the base without its transformer's
    weights) by name."""
    root = tmp_path_factory.mktemp("files")

    def make(name):
        file, folder = root / f"{name}.safetensors", root / name
        if not folder.exists():
            shutil.copytree(tiny(name), folder)
            tensors = load_file(folder / "transformer" / WEIGHTS)
            (folder / "transformer" / WEIGHTS).unlink()
            save_file({key: (0.5 * tensor).bfloat16() for key, tensor in tensors.items()}, file)
        return file, folder

    return make


@pytest.mark.parametrize("name", [name for name in VELOCITIES if name not in ("sd3-without-t5", "flux2-dev")])
def test_a_file_of_a_transformer_is_the_base_with_that_transformer(another, tiny, name):
    """The base, the lines of the model card, and the base that is loaded again by a run's record: one identity."""
    file, folder = another(name)
    base = load_base(str(file), single_file_config=str(folder), dtype=torch.bfloat16, waits=True)
    assert set(base.waiting) >= {"transformer", "vae", "text_encoder"}
    found, whole = base.identity(), load_base(str(tiny(name)))
    stock = type(whole.denoiser).from_single_file(str(file), config=str(folder), subfolder="transformer")
    assert {part for part, digest in whole.identity().items() if found[part] != digest} == {"transformer"}
    assert found["transformer"] == identity.of_network(stock.float())
    assert {p.dtype for p in base.denoiser.parameters()} == {torch.bfloat16}
    assert load_again(base.specification).identity() == found
    scope = {}
    exec(compile("\n".join(loading_lines(base)), "card", "exec"), scope)
    assert identity.of_network(scope["pipe"].transformer) == found["transformer"]
    assert identity.of_network(scope["pipe"].vae) == found["vae"]


def original_z_image(state):
    """A Z-Image transformer's tensors by the names of its own code: queries, keys and values in one matrix."""
    names = {"all_": "", ".2-1.": ".", "to_out.0": "out", "norm_q": "q_norm", "norm_k": "k_norm"}
    found = {}
    for key, tensor in state.items():
        if ".to_q." in key:
            parts = [state[key.replace(".to_q.", f".to_{name}.")] for name in "qkv"]
            found[key.replace(".to_q.", ".qkv.")] = torch.cat(parts)
        elif not re.search(r"\.to_[kv]\.", key):
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            found[key] = tensor.clone()
    return found


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_names_of_the_original_code_are_read(tiny, tmp_path, prefix):
    folder, file = tiny("z-image"), tmp_path / "z_image_bf16.safetensors"
    tensors = original_z_image(load_file(folder / "transformer" / WEIGHTS))
    assert "layers.0.attention.qkv.weight" in tensors
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, file)
    base = load_base(str(file), single_file_config=str(folder))
    assert base.identity() == load_base(str(folder)).identity()
    with pytest.raises(InputError, match="holds no whole base"):
        find_family(str(file))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no config", "for a file of a transformer alone add --single_file_config"),
        ("lora", "for a LoRA give the base model instead"),
        ("another family", "it does not hold the Flux2Transformer2DModel that --single_file_config describes"),
        ("another size", "it does not hold the FluxTransformer2DModel"),
        ("cut", "it does not hold the FluxTransformer2DModel"),
        ("a block more", r"it holds [\d,]+ weights of a transformer, and the one that"),
        ("quantized", r"its weights are quantized \(x_embedder.scale_weight\)"),
        ("no index", "has no model_index.json; give the folder of a whole base"),
        ("whole bases", "holds no whole base of Stable Diffusion, which --single_file_config"),
    ],
)
def test_a_file_that_is_no_transformer_of_the_base(another, tiny, bases, tmp_path, kind, words):
    source, config = another("flux")
    tensors, file = load_file(source), tmp_path / "file.safetensors"
    first = "transformer_blocks.0.attn.to_q.weight"
    if kind == "no config":
        config = None
    elif kind == "another family":
        config = tiny("flux2-klein")
    elif kind == "another size":
        tensors[first] = tensors[first][:, :16].clone()
    elif kind == "cut":
        del tensors[first]
    elif kind == "lora":
        tensors = {"transformer.x.lora_A.weight": torch.zeros(2, 2)}
    elif kind == "a block more":
        source, config = another("z-image")
        tensors = original_z_image(load_file(source))
        tensors |= {key.replace("s.0.", "s.1."): tensor.clone() for key, tensor in tensors.items()}
    elif kind == "quantized":
        tensors["x_embedder.scale_weight"] = torch.ones(())
    elif kind == "no index":
        config = tmp_path
    elif kind == "whole bases":
        config = bases / "sd"
    save_file(tensors, file)
    with pytest.raises(InputError, match=words) as caught:
        load_base(str(file), single_file_config=str(config) if config else None)
    assert "\n" not in str(caught.value)
    assert re.search(re.escape(str(file)), str(caught.value)) or kind == "no index"

"""DreamBooth on two processes: what one process trains, or a refusal."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dash_vision.diffusion import setup
from dash_vision.files.checkpoint import load_checkpoint, save_checkpoint
from dash_vision.files.errors import InputError
from dash_vision.runs.runtime import make_runtime
from tests.support.dreambooth import SCRIPT, fitted, prepare, settings, states, train
from tests.support.paths import ROOT
from tests.support.pictures import save_pictures
from tests.support.processes import free_port, run, start

# accelerate launch starts several processes on a CPU by MPI, or by a configuration of FSDP; torchrun needs neither.
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "FSDP": ["accelerate.commands.launch", "--config_file", str(ROOT / "docs" / "fsdp.yaml")],
}
# A launched program that tells what the launcher has put into its environment.
TELLS = """
import json, os, sys
with open(os.path.join(sys.argv[1], os.environ["RANK"] + ".json"), "w") as file:
    json.dump(dict(os.environ), file)
"""


def launched(launcher, words, folder):
    """The standard output of `words` on two processes, in processes that start at once with the environment that the
    launcher gives its own."""
    (folder / "tells.py").write_text(TELLS)
    done = run(["-m", *LAUNCHERS[launcher], folder / "tells.py", folder])
    assert done.poll() == 0, done.stderr
    changes = {"MASTER_PORT": str(free_port()), "TORCHELASTIC_USE_AGENT_STORE": "False"}  # that port is torchrun's own
    environments = [{**json.loads((folder / f"{rank}.json").read_text()), **changes} for rank in range(2)]
    processes = [start(words, **environment) for environment in environments]
    assert [process.wait() for process in processes] == [0, 0], [process.stderr for process in processes]
    return "".join(process.stdout for process in processes)


LOWEST = tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 8)  # FSDP needs a gloo that averages


@pytest.mark.parametrize(
    ("launcher", "name"),
    [
        ("torchrun", "sd"),
        # What FSDP does is of no family: each names its blocks, and a flow-matching one that of its CLIP too.
        pytest.param("FSDP", "flux", marks=pytest.mark.skipif(LOWEST, reason="needs PyTorch 2.8")),
        ("torchrun", "flux2-klein"),
    ],
)
def test_two_processes_train_what_one_does(bases, tiny, tmp_path, launcher, name):
    base = bases / "sd" if name == "sd" else tiny(name)
    size = {"resolution": 16} | ({} if name == "sd" else {"max_sequence_length": 32})
    flags = {"sd": [], "flux": ["train_text_encoder", "preserve_class"], "flux2-klein": ["preserve_class"]}[name]
    # Adam divides by the gradient's size: a tiny epsilon would blow the rounding of near-zero gradients up to whole
    # steps, and two orders of summation would be told apart by nothing but that.
    common = {"pretrained_model_name_or_path": str(base), "adam_epsilon": 1e-2, "num_inference_steps": 1} | size
    train(settings(bases, tmp_path / "one", train_batch_size=4, **common, **dict.fromkeys(flags, True)))
    words = [
        *(str(SCRIPT), "--instance_data", str(bases / "cat"), "--output_dir", str(tmp_path / "two")),
        *("--pretrained_model_name_or_path", str(base), "--rank", "2", "--dash_k", "3"),
        *("--max_train_steps", "8", "--prelaunch_steps", "4", "--train_batch_size", "2", "--learning_rate", "1e-2"),
        *("--num_inference_steps", "1", "--validation_prompt", "a photo of sks cat", "--adam_epsilon", "1e-2"),
        *(text for option, value in size.items() for text in (f"--{option}", str(value))),
        *(f"--{flag}" for flag in flags),
    ]
    if name == "sd":  # the first process measures while the other one waits, and nothing that is learned changes
        others = save_pictures(tmp_path / "others", 2)
        words += ["--holdout", str(others), "--evaluate_every", "3", "--eval_encoders", "miniature", "--early_stop"]
    said = launched(launcher, words, tmp_path)
    for name in ("dash_adapter.safetensors", "pytorch_lora_weights.safetensors", "kohya/{}.safetensors"):
        one, two = (load_file(tmp_path / out / name.format(out)) for out in ("one", "two"))
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            if key.endswith("indices"):
                assert torch.equal(tensor, two[key])
            else:
                assert torch.allclose(tensor, two[key], atol=1e-5, rtol=0), key
    assert said.count("base: " + str(base)) == 1  # one process speaks
    report = json.loads((tmp_path / "two/run.json").read_text())
    assert (report["processes"], report["fsdp"]) == (2, launcher == "FSDP")
    if "--holdout" in words:
        assert [one["step"] for one in report["evaluation"]["checkpoints"]] == [0, 3, 6, 8]
    difference = np.asarray(Image.open(tmp_path / "one/samples.png")) - np.asarray(
        Image.open(tmp_path / "two/samples.png"), np.int16
    )
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("optimizer", [{"optimizer": "prodigy", "learning_rate": 1.0}, {"use_8bit_adam": True}])
def test_optimizers_that_take_no_split_model_are_refused(bases, tmp_path, optimizer):
    runtime = make_runtime("no", "cpu")
    runtime.sharded = True  # refused before any process would be needed
    with pytest.raises(InputError, match="FSDP splits the optimizer's numbers too"):
        setup.prepare(settings(bases, tmp_path / "out", **optimizer), runtime, print)


def test_the_same_batch_split_otherwise_goes_on_with_the_same_pictures(bases, tmp_path):
    """Half of the run with a batch of 4; then 2 x 2 accumulated, and as of two processes with 2 each."""
    common = {"adam_epsilon": 1e-2, "checkpointing_steps": 4, "checkpoints_total_limit": None}
    expected = states(fitted(settings(bases, tmp_path / "whole", train_batch_size=4, **common)))
    path = tmp_path / "whole/checkpoint-4.safetensors"
    state = load_checkpoint(path)
    of_two = tmp_path / "checkpoint-4.safetensors"
    was = {**state["settings"], "train_batch_size": 2}
    save_checkpoint(of_two, state | {"processes": 2, "settings": was})
    ways = [
        (path, {"train_batch_size": 2, "gradient_accumulation_steps": 2}),
        (of_two, {"train_batch_size": 4}),
        (of_two, {"train_batch_size": 1, "gradient_accumulation_steps": 4}),
    ]
    for number, (checkpoint, split) in enumerate(ways):
        out, lines = tmp_path / f"out-{number}", []
        config = settings(bases, out, resume_from_checkpoint=str(checkpoint), **split, **common)
        found = states(fitted(config, lines))
        assert any("the same batches, split otherwise" in line for line in lines) == (checkpoint == of_two)
        assert all(torch.allclose(t, found[key], atol=1e-5, rtol=0) for key, t in expected.items())
    config = settings(bases, tmp_path / "no", resume_from_checkpoint=str(path), train_batch_size=2, **common)
    with pytest.raises(InputError, match="--train_batch_size 4, this run has 2"):
        prepare(config)


def test_pictures_of_several_sizes_depend_on_the_batch_of_each_process(bases, tmp_path):
    common = {"aspect_ratio_buckets": True, "checkpointing_steps": 4}
    fitted(settings(bases, tmp_path / "out", train_batch_size=4, **common))
    changes = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "checkpoint-4"}
    with pytest.raises(InputError, match="--train_batch_size 4, this run has 2"):
        prepare(settings(bases, tmp_path / "out", **changes, **common))

"""The examples of language models on tiny ones: they train, choose, test and say what is wrong with the data."""

import json
import runpy
import sys

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.support.language import tiny_llama
from tests.support.paths import ROOT
from tests.support.quantized import WORDS as WORDS_OF_QUANTIZATION
from tests.support.quantized import need

WORDS = [
    "good",
    "bad",
    "film",
    "play",
    "a",
    "the",
    "true",
    "false",
    "is",
    "answer",
    "correct",
    "it",
    "Answer",
    "format",
]


def tokenizer(folder):
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "</s>", *WORDS])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>"
    ).save_pretrained(folder)


def run(name, *flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, vocab_size=32)).save_pretrained(folder)
    tokenizer(folder)
    return folder


def write_table(folder):
    """The label is whether the text is good: easy to learn."""
    rows = [f"{adjective} {noun}\t{int(adjective == 'good')}" for adjective in ("good", "bad") for noun in WORDS]
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")


FLAGS = ["--use_cpu", "True", "--disable_tqdm", "True", "--seed", "1"]


@pytest.mark.parametrize("method", ["dash", "peft"])
def test_glue_learns_an_easy_task(bert, tmp_path, monkeypatch, capsys, method):
    write_table(tmp_path)
    if method == "peft":
        method = tmp_path / "dora.json"
        method.write_text(json.dumps({"peft_type": "LORA", "use_dora": True, "r": 4, "target_modules": "all-linear"}))
    flags = ["--model_name_or_path", bert, "--data_dir", tmp_path, "--output_dir", tmp_path / "out", "--method", method]
    settings = ["--num_train_epochs", 12, "--learning_rate", 0.02, "--prelaunch_steps", 10, "--dash_lr", 0.01]
    settings = settings if method == "dash" else settings[:4]
    run("glue.py", *flags, *settings, *FLAGS, monkeypatch=monkeypatch)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["test_accuracy"] == 100  # dev and test are the training set here
    assert len(result["dev_accuracy"]) == 12
    assert "100.00 % on test" in capsys.readouterr().out


def test_glue_trains_a_decoder_whose_configuration_names_no_padding(tmp_path, monkeypatch):
    base = tmp_path / "llama"
    tiny_llama().save_pretrained(base)
    tokenizer(base)
    assert json.loads((base / "config.json").read_text()).get("pad_token_id") is None
    write_table(tmp_path)
    rows = (tmp_path / "test.tsv").read_text().splitlines()
    wrong = ["a film\t0", "a play\t1"]  # beyond --test_limit
    (tmp_path / "test.tsv").write_text("\n".join([*rows[:9], *wrong]) + "\n")
    flags = ["--model_name_or_path", base, "--data_dir", tmp_path, "--output_dir", tmp_path / "out", "--test_limit", 8]
    settings = ["--num_train_epochs", 12, "--learning_rate", 0.02, "--prelaunch_steps", 10, "--dash_lr", 0.01]
    run("glue.py", *flags, *settings, *FLAGS, monkeypatch=monkeypatch)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["dev_accuracy"][-1], result["test_accuracy"]) == (100, 100)


def test_glue_reads_tables_of_two_texts(bert, tmp_path, monkeypatch):
    """The label is whether the second text is good, whatever the first one says."""
    pairs = [(a, b) for a in ("good", "bad") for b in ("good", "bad")] * 6
    rows = [f"{number}\tit is {a}\tthe film is {b}\t{int(b == 'good')}" for number, (a, b) in enumerate(pairs)]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["idx\tquestion\tpassage\tlabel", *rows]) + "\n")
    flags = ["--model_name_or_path", bert, "--data_dir", tmp_path, "--output_dir", tmp_path / "out", "--method", "full"]
    settings = ["--num_train_epochs", 12, "--learning_rate", 0.02]
    run("glue.py", *flags, *settings, *FLAGS, monkeypatch=monkeypatch)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["test_accuracy"] == 100


@pytest.mark.parametrize(
    ("table", "words"),
    [("sentence\tlabel\ngood film\tyes\n", "column `label` of whole numbers"), (None, "cannot be read")],
)
def test_glue_says_what_is_wrong_with_a_table(bert, tmp_path, monkeypatch, table, words):
    write_table(tmp_path)
    (tmp_path / "dev.tsv").unlink()
    if table:
        (tmp_path / "dev.tsv").write_text(table)
    with pytest.raises(SystemExit, match=rf"error: .*dev\.tsv.*{words}"):
        run(
            "glue.py",
            *("--model_name_or_path", bert, "--data_dir", tmp_path, "--output_dir", tmp_path / "out"),
            monkeypatch=monkeypatch,
        )


def question(answer):
    return {
        "instruction": "is it a good film\n\nAnswer format: true/false"
        if answer == "true"
        else "is it a bad film\n\nAnswer format: true/false",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def test_commonsense_learns_two_questions_and_scores_them_both_ways(tmp_path, monkeypatch):
    base = tmp_path / "llama"
    tiny_llama().save_pretrained(base)
    tokenizer(base)
    (tmp_path / "data" / "yesno").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [question("true"), question("false")] * 8
        (tmp_path / "data" / "yesno" / f"{split}.json").write_text(json.dumps(rows))
    flags = ["--model_name_or_path", base, "--data_dir", tmp_path / "data", "--sets", "yesno", "--output_dir", tmp_path]
    settings = ["--max_steps", 60, "--learning_rate", 0.02, "--warmup_steps", 0, "--prelaunch_steps", 20, "--dev", 2]
    run("commonsense.py", *flags, *settings, *FLAGS, monkeypatch=monkeypatch)
    result = json.loads((tmp_path / "result.json").read_text())
    scores = result["accuracy"]["yesno"]
    assert (scores["likelihood"], scores["generated"], result["dev_accuracy"]) == (100, 100, [100])
    assert result["dev_loss"][0] == pytest.approx(scores["loss"], abs=1e-3)  # the same two questions
    with pytest.raises(SystemExit, match="--dev 16 leaves nothing of the 16 training questions"):
        run("commonsense.py", *flags, "--dev", 16, monkeypatch=monkeypatch)
    with pytest.raises(SystemExit, match="--quantize is one of none, nf4, int8, fp8, got 'int4'"):
        run("commonsense.py", *flags, "--quantize", "int4", monkeypatch=monkeypatch)


@pytest.mark.parametrize("word", WORDS_OF_QUANTIZATION)
def test_commonsense_trains_on_a_quantized_base(tmp_path, monkeypatch, word):
    need(word)
    base = tmp_path / "llama"
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(base)
    tokenizer(base)
    (tmp_path / "data" / "yesno").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [question("true"), question("false")] * 2
        (tmp_path / "data" / "yesno" / f"{split}.json").write_text(json.dumps(rows))
    flags = ["--model_name_or_path", base, "--data_dir", tmp_path / "data", "--sets", "yesno", "--output_dir", tmp_path]
    settings = ["--quantize", word, "--max_steps", 3, "--prelaunch_steps", 1, "--learning_rate", 0.02]
    run("commonsense.py", *flags, *settings, "--warmup_steps", 0, *FLAGS, monkeypatch=monkeypatch)
    shifts = load_file(tmp_path / "dash_adapter.safetensors")
    assert all(t.any() for key, t in shifts.items() if key.endswith("dsigma"))


def test_commonsense_says_what_is_wrong_with_the_questions(tmp_path, monkeypatch):
    base = tmp_path / "llama"
    tiny_llama().save_pretrained(base)
    tokenizer(base)
    (tmp_path / "data" / "yesno").mkdir(parents=True)
    flags = ["--model_name_or_path", base, "--data_dir", tmp_path / "data", "--output_dir", tmp_path]
    with pytest.raises(SystemExit, match=r"boolq.train\.json cannot be read.*holds yesno"):
        run("commonsense.py", *flags, "--sets", "boolq", monkeypatch=monkeypatch)
    strange = {**question("true"), "answer": "maybe"}
    for split, rows in (("train", [question("true")]), ("test", [strange])):
        (tmp_path / "data" / "yesno" / f"{split}.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit, match="does not end with an answer format of its answer"):
        run("commonsense.py", *flags, "--sets", "yesno", monkeypatch=monkeypatch)

"""--max_token_length: captions in chunks, joined as kohya's trainer joins them."""

import pytest
import torch

from dash_vision.bases.loading import load_base
from dash_vision.diffusion.long_prompts import count_chunks, encode_chunks, left_out, tokenize_chunks
from dash_vision.diffusion.run import fit
from dash_vision.files.errors import InputError
from tests.support.dreambooth import prepare, settings
from tests.support.pictures import save_pictures

# The tiny bases' tokenizer reads 12 tokens, 10 words between its beginning and its end.
TEXT = "a cat in the snow a dog on the beach a red cat in a box with a ball a red dog"
WORDS = TEXT.split()


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def base(bases, request):
    return load_base(str(bases / request.param))


def test_the_words_are_a_token_each(base):
    assert len(base.pipeline.tokenizer(TEXT, add_special_tokens=False).input_ids) == len(WORDS) == 22


def test_states_are_those_of_every_chunk_by_itself_without_the_marks_between(base):
    family, pipeline, device = base.family, base.pipeline, torch.device("cpu")
    long = TEXT
    parts = [" ".join(WORDS[start : start + 10]) for start in (0, 10, 20)]
    alone = family.encode_prompts(pipeline, parts, device)
    first, second, third = (alone[part]["prompt_embeds"][0] for part in parts)
    expected = torch.cat([first[:11], second[1:11], third[1:12]])  # begin + 10, 10, 10 + end: 32 states
    found = encode_chunks(family, pipeline, [long], 3, device)[long]
    torch.testing.assert_close(found["prompt_embeds"][0], expected, rtol=0, atol=1e-5)
    assert found["prompt_embeds"].shape[1] == 3 * 10 + 2
    for key in found.keys() - {"prompt_embeds"}:
        torch.testing.assert_close(found[key], alone[parts[0]][key], rtol=0, atol=1e-5)


def test_a_short_prompt_fills_its_chunks_with_empty_ones(base):
    ids = tokenize_chunks(base.family, base.pipeline, "a cat", 2)
    tokenizer = base.pipeline.tokenizer
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    words = tokenizer("a cat", add_special_tokens=False).input_ids
    assert ids[0][:, 0].tolist() == [[begin, *words, end, *[pad] * 8], [begin, end, *[pad] * 10]]


def test_what_is_beyond_the_chunks_is_told(base):
    assert left_out(base.family, base.pipeline, TEXT, 2) == "red dog"
    assert left_out(base.family, base.pipeline, TEXT, 3) == ""


def test_chunks_hold_the_tokens_asked_for(base):
    assert [count_chunks(base.family, base.pipeline, n) for n in (None, 10, 11, 30)] == [1, 1, 2, 3]


def test_a_base_without_clip_is_not_read_in_chunks(base, monkeypatch):
    monkeypatch.setattr("dash_vision.diffusion.long_prompts._tokenizers", lambda *_: [object()])
    with pytest.raises(InputError, match="--max_token_length is for bases whose text encoders are all CLIP"):
        count_chunks(base.family, base.pipeline, 225)


@pytest.mark.parametrize(("kind", "text_encoder"), [("sd", True), ("sdxl", False)])
def test_a_run_learns_from_the_end_of_a_long_caption(bases, tmp_path, kind, text_encoder):
    """Two captions that differ only beyond the first chunk: they are one caption without the setting, two with it."""
    pictures = tmp_path / "cat"
    pictures.mkdir()
    (picture,) = list((bases / "cat").glob("*.png"))[:1]
    (pictures / "0.png").write_bytes(picture.read_bytes())
    losses = {}
    for end in ("cat", "dog"):
        (pictures / "0.txt").write_text(" ".join(WORDS[:10]) + f" a {end}")
        for tokens in (None, 30):
            changes = {
                "max_token_length": tokens,
                "instance_data_dir": str(pictures),
                "train_text_encoder": text_encoder,
            }
            out = tmp_path / f"{end}{tokens}"
            lines = []
            job = prepare(settings(bases, out, kind, max_train_steps=3, prelaunch_steps=1, **changes), lines)
            fit(job)
            losses[end, tokens] = job.training.losses
            assert any(f'it will not see: "a {end}"' in line for line in lines) == (tokens is None)
    assert losses["cat", None] == losses["dog", None]
    assert losses["cat", 30] != losses["dog", 30]


def test_what_is_cut_is_told_in_short_lines_and_few(bases, tmp_path):
    pictures = save_pictures(tmp_path / "cat", 5)
    for number in range(5):
        (pictures / f"{number}.txt").write_text(f"a {'cat' if number % 2 else 'dog'} " * (100 + number))
    lines = []
    prepare(settings(bases, tmp_path / "out", instance_data_dir=str(pictures), max_train_steps=5), lines)
    told = [line for line in lines if "longer than this base reads" in line]
    assert len(told) == 4
    assert all("--max_token_length 225 reads more" in line and len(line) < 300 for line in told[:3])
    assert told[3] == "note: 2 more prompts are longer than this base reads"

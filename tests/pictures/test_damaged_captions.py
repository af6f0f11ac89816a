"""Any bytes at all as metadata: they mean what JSON says, or are refused in a sentence."""

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from dash_vision import InputError
from dash_vision.pictures.captions import read_metadata
from tests.support.fuzz import FUZZ, any_file

lines = st.fixed_dictionaries({"file_name": st.sampled_from(["1.png", "2.png"]), "text": st.text(max_size=30)})


@FUZZ
@given(data=st.data(), records=st.lists(lines, min_size=1, max_size=3))
def test_damaged_metadata_are_refused_or_mean_what_json_says(tmp_path, data, records):
    whole = "\n".join(json.dumps(record) for record in records).encode()
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(data.draw(any_file(whole)))
    with contextlib.suppress(InputError):
        found = read_metadata(path, ["1.png", "2.png"])
        rows = [json.loads(line) for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]
        assert len(found) == len(rows)
        blank = str.maketrans(dict.fromkeys([*range(32), *range(127, 160)], " "))  # control characters
        for row in rows:
            caption = found[row["file_name"].removeprefix("./")]
            assert caption.split() == (row["text"] or "").translate(blank).split()

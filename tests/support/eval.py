"""Commands of `eval` on the shared runs."""

import json
import shutil

from PIL import Image

from dash_vision.drawing.sheet import Row, draw_sheet
from dash_vision.miniature import clip_path
from eval.__main__ import main


def figure_of(runs, out, *adapters, prompts=("a photo of {}", "a {} in the snow")):
    words = ["figure", "--subject", str(runs / "cat")]
    for adapter in adapters:
        words += ["--adapter", f"{adapter}={runs / adapter}"]
    return main([*words, "--prompts", *prompts, "-o", str(out)])


def painted_sheet(colour, columns=1, inputs=2):
    """A sheet whose trained pictures are of one colour, everything else of others."""

    def pictures(paint, count):
        return [Image.new("RGB", (64, 64), paint)] * count

    rows = [Row("base", "b", pictures("#777777", columns)), Row("LoRA", "n", pictures(colour, columns))]
    prompts = [f"a photo of sks cat, number {i}" for i in range(columns)]
    foot = "25 steps, guidance 7.5, seed 123456; same starting noise within a column."
    return draw_sheet(Row("input", "i", pictures("#00ff00", inputs)), prompts, rows, "cat", foot)


def copied_runs(runs, root, **changes):
    """lora/ and dash/ below `root`, with entries of dash's run.json changed."""
    for name in ("lora", "dash"):
        shutil.copytree(runs / "dream" / name, root / name)
    record = json.loads((root / "dash/run.json").read_text())
    record["arguments"] |= changes.pop("arguments", {})
    record |= changes
    (root / "dash/run.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    assert main(["report", str(root / "lora"), str(root / "dash"), "-o", str(root / "r.html")]) == 0
    return root / "r.html"


PROMPTS = ("a {} in the snow", "a red {}")


def words(runs, out, *extra, prompts=PROMPTS):
    adapters = [w for name in ("still", "dash") for w in ("--adapter", f"{name}={runs / name}")]
    chosen = ["--prompts", *prompts] if prompts else []
    common = ["--clip", str(clip_path()), "--dino", "none", "--device", "cpu", "--images_per_prompt", "2"]
    return ["subject", "--subject", str(runs / "cat"), *adapters, *chosen, *common, *extra, "-o", str(out)]

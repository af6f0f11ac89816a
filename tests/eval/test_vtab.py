"""The VTAB table: means, spreads, bold numbers and published rows."""

import csv
import io
import statistics

import pytest

from eval.__main__ import main
from eval.vtab.columns import GROUPS, TASKS
from eval.vtab.rows import PUBLISHED, published_rows
from eval.vtab.table import table
from tests.support.eval_results import results


def test_published_rows_have_their_published_means():
    # Mean of the three group means / mean of the 19 tasks, as published; one number where it is not said which.
    expected = {"full": (68.97, 65.57), "linear": (57.64, 52.94), "LoRA r8 (q, v)": (74.60, 72.25)}
    expected |= {"HST": (78.13, 75.99), "GPS": (77.47, 75.18), "RepAdapter": (77.15, 75.02), "Convpass": (76.56, 74.44)}
    alone = {"Adapter+": 77.6, "SSF": 75.69, "FacT": 75.55, "NOAH": 75.48}
    rows = {row.name: row for row in published_rows()}
    assert rows.keys() == expected.keys() | alone.keys()
    for name, (groups, tasks) in expected.items():
        assert rows[name].mean("mean of groups").value == pytest.approx(groups, abs=0.011)
        assert rows[name].mean("mean of 19").value == pytest.approx(tasks, abs=0.011)
    for name, number in alone.items():
        assert rows[name].unclear_mean == number
        assert rows[name].mean("mean of groups") is rows[name].mean("mean of 19") is None
    assert [len(tasks) for tasks in GROUPS.values()] == [7, 4, 8]


def test_published_rows_show_only_what_is_known(tmp_path):
    head, lines, _ = markdown([], published=True)
    known = {name: [head[i] for i, cell in enumerate(cells) if cell != "–"] for name, cells in lines.items()}  # noqa: RUF001
    named = [f"*{name} (published elsewhere)*" for name in ("HST", "NOAH, mean 75.48 of groups or of tasks")]
    assert known[named[0]] == ["method", "backbone", "mean of groups", "mean of 19"]
    assert known[named[1]] == ["method", "backbone"]
    assert lines["*LoRA r8 (q, v) (published elsewhere)*"][:3][1:] == ["ViT-B/16, IN-21k", "0.29M"]
    text, _, _ = table([], "csv", published=True)
    (only,) = [r for r in csv.DictReader(io.StringIO(text)) if r["method"] == "NOAH" and r["accuracy"]]
    assert (only["model"], only["column"]) == ("ViT-B/16, IN-21k", "mean_of_groups_or_of_19")
    assert (only["accuracy"], only["official_split"]) == ("75.4800", "")


def markdown(paths, published=False):
    """(head, per row its cells by the first one, the lines under it) of a table in Markdown."""
    above, _, below = table(list(paths), "markdown", published)[0].partition("\n\n")
    head, _, groups, *rows = [[c.strip() for c in line[1:-1].split(" | ")] for line in above.splitlines()]
    assert groups[3:] == ["Natural"] * 7 + ["Specialized"] * 4 + ["Structured"] * 8 + ["Means"] * 5
    assert {len(row) for row in rows} <= {len(head)}
    return head, {row[0]: row for row in rows}, below


def test_means_spreads_and_the_best_in_bold(tmp_path):
    results(tmp_path, "dash", dict.fromkeys(TASKS, 60.0), seeds=(0, 1, 2))
    results(tmp_path, "lora", {**dict.fromkeys(TASKS, 50.0), "svhn": 90.0}, seeds=(0, 1, 2))
    head, lines, below = markdown([tmp_path], published=True)
    dash, lora, *others = lines.values()
    assert len(head) == 3 + 19 + 5
    assert "- measured rows: mean ± sample standard deviation over 3 seeds\n" in below
    svhn = head.index("SVHN")
    # Seeds 0, 1, 2 give x, x + 1, x + 2: mean x + 1, sample deviation 1.
    assert dash[head.index("DTD")] == "**61.0** ± 1.0"
    assert lora[head.index("DTD")] == "51.0 ± 1.0"
    assert (dash[svhn], lora[svhn]) == ("61.0 ± 1.0", "**91.0** ± 1.0")
    assert dash[2] == "290,000"
    natural = (6 * 51 + 91) / 7
    assert (
        lora[head.index("natural")] == f"{natural:.1f} ± 1.0"
    )  # every task, and so their mean, rises by 1 with the seed
    assert lora[head.index("mean of groups")] == f"{(natural + 51 + 51) / 3:.1f} ± 1.0"
    assert lora[head.index("mean of 19")] == f"{(18 * 51 + 91) / 19:.1f} ± 1.0"
    assert [row[0] for row in others[:3]] == [f"*{name} (published elsewhere)*" for name in PUBLISHED]
    assert not any("**" in cell for row in others for cell in row)  # never mixed with measured ones


def test_missing_cells_stay_missing(tmp_path):
    results(tmp_path, "dash", {"cifar": 70.0, "mini_count": 99.0})
    results(tmp_path, "lora", {"cifar": 60.0}, test_accuracy=None)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "result.json").write_text('{"task": "ci')
    _, remarks, problems = table([tmp_path], "markdown", published=False)
    row = markdown([tmp_path])[1]["dash"]
    assert row[3] == "70.0"  # nothing to compare with: not bold
    assert row[4:] == ["–"] * 23  # noqa: RUF001
    assert len(problems) == 2
    said = "\n".join(remarks + problems)
    assert "cut" in said
    other, _ = table([tmp_path], "markdown", published=False)[0].split("\n\n")[2:]
    assert [line.split(" | ")[3:] for line in other.splitlines()] == [
        ["mini_count |"],
        ["---: |"],
        ["Other tasks |"],
        ["99.0 |"],
    ]
    assert "no result for caltech101" in said
    assert "lora" in said


@pytest.mark.parametrize("style", ["markdown", "latex", "csv"])
def test_a_table_keeps_what_makes_it_not_comparable(tmp_path, capsys, style):
    official = dict.fromkeys([*GROUPS["natural"], *GROUPS["specialized"]], 60.0)
    results(tmp_path, "lora", {t: a for t, a in official.items() if t != "dtd"}, model="miniature")
    results(tmp_path, "lora", {"dtd": 70.0}, model="miniature", official_split=False)
    results(tmp_path, "dash", {"svhn": 80.0}, model="vit_base_patch16_224")
    assert main(["vtab", str(tmp_path), "--style", style, "-o", str(tmp_path / "t")]) == 0
    text = (tmp_path / "t").read_text()
    if style == "csv":
        rows = {(r["model"], r["column"]): r["official_split"] for r in csv.DictReader(io.StringIO(text))}
        assert {column for (_, column), is_official in rows.items() if is_official == "no"} == {"dtd", "natural"}
        assert rows["miniature", "cifar"] == rows["vit_base_patch16_224", "svhn"] == "yes"
        assert rows["vit_base_patch16_224", "dtd"] == ""  # missing
        return
    mark = {"markdown": "‡", "latex": r"$^\ddagger$"}[style]
    row = next(line for line in text.splitlines() if "miniature" in line and "70.0" in line)
    cells = [cell.strip(" |\\") for cell in row.split("|" if style == "markdown" else "&") if cell.strip()]
    assert cells[:2] == ["lora", "miniature"]
    assert [cell for cell in cells if mark in cell] == [f"70.0{mark}", f"61.4{mark}"]  # (6 * 60 + 70) / 7 = 61.43
    remarks = [line for line in text.splitlines() if line.startswith(("- ", r"\par"))]
    assert sum(f"dtd {mark} not the official split; not comparable" in remark for remark in remarks) == 1
    assert sum("different backbones" in remark for remark in remarks) == 1
    assert sum("no result for cifar, caltech101, dtd" in remark for remark in remarks) == 1  # of dash


def test_seeds_are_counted_where_they_differ(tmp_path):
    results(tmp_path, "lora", dict.fromkeys(GROUPS["natural"], 50.0), seeds=(0, 2))
    results(tmp_path, "lora", dict.fromkeys(GROUPS["specialized"], 50.0), seeds=(0, 1, 2))
    results(tmp_path, "lora", {"cifar": 50.0}, seeds=(4,))
    head, lines, below = markdown([tmp_path])
    row = dict(zip(head, lines["lora"], strict=True))
    # 50, 52 and 54: mean 52, deviation 2. 50 and 52: mean 51, deviation sqrt 2. 50, 51 and 52: mean 51, deviation 1.
    assert (row["Cifar100"], row["DTD"], row["EuroSAT"]) == ("52.0 ± 2.0 (3)", "51.0 ± 1.4 (2)", "51.0 ± 1.0 (3)")
    assert row["natural"] == "51.1"  # (52 + 6 * 51) / 7; its tasks have different seeds
    assert row["specialized"] == "51.0 ± 1.0 (3)"
    assert "in brackets the number of seeds" in below


def test_the_best_is_bold_among_rows_of_one_backbone(tmp_path):
    for method, model, accuracy in (("dash", "a", 50.0), ("lora", "a", 40.0), ("full", "b", 90.0)):
        results(tmp_path, method, {"cifar": accuracy}, seeds=(0, 2), model=model)
    cells = {name: row[3] for name, row in markdown([tmp_path])[1].items()}
    assert cells == {"dash": "**51.0** ± 1.4", "lora": "41.0 ± 1.4", "full": "91.0 ± 1.4"}


def test_a_single_seed_is_never_bold(tmp_path):
    results(tmp_path, "dash", {"cifar": 50.0, "dtd": 50.0})
    results(tmp_path, "lora", {"cifar": 40.0})
    results(tmp_path, "lora", {"dtd": 40.0}, seeds=(0, 1))
    head, lines, _ = markdown([tmp_path])
    assert not any("**" in cell for row in lines.values() for cell in row)
    results(tmp_path, "full", {"dtd": 30.0}, seeds=(0, 1))
    lines = markdown([tmp_path])[1]
    assert lines["lora"][head.index("DTD")].startswith("**40.5**")  # of those with two seeds
    assert lines["dash"][head.index("DTD")] == "50.0 (1)"
    results(tmp_path / "alone", "dash", {"cifar": 50.0})
    assert "one seed each, so nothing is bold" in markdown([tmp_path / "alone"])[2]


def test_numbers_of_another_split_do_not_take_the_bold_from_the_official_ones(tmp_path):
    two = {"seeds": (0, 1)}  # x and x + 1: mean x + 0.5
    for method, accuracy, official in (("a", 39.5, True), ("b", 49.5, True), ("c", 89.5, False)):
        results(tmp_path, method, {"cifar": accuracy}, official_split=official, **two)
    for method, accuracy in (("a", 59.5), ("c", 69.5)):
        results(tmp_path, method, {"dtd": accuracy}, official_split=method == "a", **two)
    for method, accuracy in (("a", 9.5), ("c", 19.5)):
        results(tmp_path, method, {"svhn": accuracy}, official_split=False, **two)
    head, lines, _ = markdown([tmp_path])

    def column(name):
        return [row[head.index(name)].replace(" ± 0.7", "") for row in lines.values()]

    assert column("Cifar100") == ["40.0", "**50.0**", "90.0‡"]
    assert column("DTD") == ["60.0", "–", "70.0‡"]  # noqa: RUF001
    assert column("SVHN") == ["10.0‡", "–", "**20.0**‡"]  # noqa: RUF001


@pytest.mark.parametrize("official", [False, True])
def test_embedded_tasks_have_a_table_of_their_own(tmp_path, official):
    for method, extra in (("lora", 0.0), ("dash", 2.0)):
        results(tmp_path, method, {"mini_count": 40 + extra, "mini_location": 71.5}, seeds=(0, 1), synthetic=True)
        results(tmp_path, method, {"cifar": 50.0} if official else {})
    text, remarks, problems = table([tmp_path], "markdown", published=False)
    assert problems == []
    parts = text.split("\n\n")
    assert len(parts) == (4 if official else 2)
    head, _, over, *rows = [[c.strip(" |") for c in line.split(" | ")] for line in parts[-2].splitlines()]
    assert head == ["method", "backbone", "parameters", "mini_count", "mini_location", "mean of others"]
    assert over[3:] == ["Other tasks", "Other tasks", "Means"]
    # Seeds 0 and 1: x and x + 1, of deviation 0.7. Means: (40.5 + 72) / 2 and (42.5 + 72) / 2.
    assert {row[0]: row[3:] for row in rows} == {
        "lora": ["40.5 ± 0.7‡", "**72.0** ± 0.7‡", "56.2 ± 0.7‡"],
        "dash": ["**42.5** ± 0.7‡", "**72.0** ± 0.7‡", "**57.2** ± 0.7‡"],
    }
    assert sum("mini_count, mini_location ‡ synthetic" in remark for remark in remarks) == 1
    found = list(csv.DictReader(io.StringIO(table([tmp_path], "csv", published=False)[0])))
    embedded = [row for row in found if row["column"] in ("mini_count", "mini_location", "mean_of_others")]
    assert [row["official_split"] for row in embedded] == ["no"] * 6
    assert len(found) == 6 + 48 * official
    latex = table([tmp_path], "latex", published=False)[0]
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1 + official
    assert r"\rotatebox{90}{mini\_count}" in latex
    assert latex.count(r"\ifdim\wd0>\linewidth\resizebox") == 1 + official  # a small table keeps its size of print
    assert latex.count("{") == latex.count("}")


def test_a_compact_table_has_the_measured_columns_alone(tmp_path):
    natural = list(GROUPS["natural"])
    results(tmp_path, "lora", dict.fromkeys([*natural, "kitti"], 49.0), seeds=(0, 2))  # x and x + 2
    results(tmp_path, "dash", dict.fromkeys(natural, 59.0), seeds=(0, 2))
    text, remarks, _ = table([tmp_path], "markdown", published=True, compact=True)
    head, _, over, *rows = [[c.strip(" |") for c in line.split(" | ")] for line in text.split("\n\n")[0].splitlines()]
    assert head[3:] == [*(TASKS[task] for task in natural), "KITTI-Dist", "natural"]
    assert over[3:] == ["Natural"] * 7 + ["Structured", "Means"]
    cells = {row[0]: [cell.replace(" ± 1.4", "") for cell in row[3:]] for row in rows}
    assert cells["dash"] == [*["**60.0**"] * 7, "–", "**60.0**"]  # noqa: RUF001
    assert cells["lora"] == [*["50.0"] * 8, "50.0"]
    assert cells["*full (published elsewhere)*"][-2:] == ["65.5", "75.9"]
    assert [remark for remark in remarks if "no result" in remark] == [
        "dash: no result for kitti; shown as –, and no mean over them"  # noqa: RUF001
    ]


def test_rows_are_set_against_one_by_task_and_seed(tmp_path, capsys):
    results(tmp_path, "lora", {"cifar": 50.0, "kitti": 70.0, "mini_count": 30.0}, seeds=(0, 1, 2))  # x, x + 1, x + 2
    results(tmp_path, "dash", {"cifar": 52.0, "kitti": 70.5}, seeds=(0, 1))
    results(tmp_path, "dash", {"mini_count": 35.0}, seeds=(2,))
    results(tmp_path, "x100", {"cifar": 51.0, "mini_count": 29.0}, seeds=(0, 1, 2))
    results(tmp_path, "full", {"dtd": 80.0})  # shares nothing
    results(tmp_path, "far", {"cifar": 90.0}, model="another")
    (tmp_path / "cifar/dash/seed1/result.json").write_text(
        (tmp_path / "cifar/dash/seed1/result.json").read_text().replace("53.0", "52.5")
    )
    assert main(["vtab", str(tmp_path), "--against", "lora"]) == 0
    part = capsys.readouterr().out.split("\n\n")[-2]
    head, _, *rows = [[c.strip(" |") for c in line.split(" | ")] for line in part.splitlines()]
    assert head == ["method", "less", "Cifar100", "KITTI-Dist", "mini_count", "pairs", "mean over tasks"]
    # CIFAR-100: 52 - 50 and 52.5 - 51; mini_count, seed 2: 37 - 32. Of the tasks' means t = 4.303 (two degrees of
    # freedom); two tasks have no interval.
    gaps = [1.75, 0.5, 5.0]
    half = 4.303 * statistics.stdev(gaps) / 3**0.5
    mean = statistics.fmean(gaps)
    whole = f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
    nothing = "–"  # noqa: RUF001
    assert sorted(rows) == [
        ["dash", "lora", "+1.75 (+1.50 to +2.00)", "+0.50 (+0.50 to +0.50)", "+5.00", "5", whole],
        ["x100", "lora", "+1.00 (+1.00 to +1.00)", nothing, "-1.00 (-1.00 to -1.00)", "6", "0.00"],
    ]
    assert main(["vtab", str(tmp_path), "--against", "lora", "--style", "latex"]) == 0
    part = capsys.readouterr().out.split(r"\begin{tabular}")[-1]
    whole = whole.replace("-", "$-$")
    assert rf"dash & lora & +1.75 (+1.50 to +2.00) & +0.50 (+0.50 to +0.50) & +5.00 & 5 & {whole} \\" in part
    assert r"method & less & Cifar100 & KITTI-Dist & mini\_count & pairs & mean over tasks \\" in part
    for words, sentence in (
        (["--against", "peft"], "--against is peft, but no row is called that; the rows are"),
        (["--against", "full"], "no other row shares a backbone, a task and a seed with full"),
        (["--against", "lora", "--style", "csv"], "--against is a second table, which one CSV does not hold"),
    ):
        assert main(["vtab", str(tmp_path), *words]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1


def test_differences_pair_like_with_like(tmp_path, capsys):
    """Rows are called what their tables call them; another split or backbone is no pair."""
    for method, gain in (("lora", 0.0), ("dash", 1.0)):
        results(tmp_path, method, {"cifar": 50.0 + gain}, model="vit", arguments={"method": method, "epochs": 100})
        small = {"model": "mini", "arguments": {"method": method, "epochs": 16}, "synthetic": True}
        results(tmp_path, method, {"mini_count": 30.0 + 2 * gain}, **small)
    results(tmp_path, "lora", {"dtd": 40.0}, model="vit", arguments={"method": "lora", "epochs": 100})
    dtd = {"model": "vit", "arguments": {"method": "dash", "epochs": 100}, "official_split": False}
    results(tmp_path, "dash", {"dtd": 90.0}, **dtd)
    assert main(["vtab", str(tmp_path), "--against", "lora"]) == 0
    part = capsys.readouterr().out.split("\n\n")[-2]
    rows = [[c.strip(" |") for c in line.split(" | ")] for line in part.splitlines()[2:]]
    nothing = "–"  # noqa: RUF001
    assert sorted(rows) == [
        ["dash", "lora", "+1.00", nothing, nothing, "1", "+1.00"],
        ["dash", "lora", nothing, nothing, "+2.00", "1", "+2.00"],
    ]


def test_what_several_rows_lack_is_said_once(tmp_path):
    for method in ("dash", "lora"):
        results(tmp_path, method, {"cifar": 50.0}, official_split=False)
    _, remarks, _ = table([tmp_path], "markdown", published=False)
    assert [remark.partition(":")[0] for remark in remarks[1:]] == ["dash; lora", "dash; lora"]


def test_sizes_of_small_models_differ(tmp_path):
    for method, count in (("lora", 65_536), ("dash", 65_664)):
        results(tmp_path, method, {"cifar": 50.0}, parameters={"trained_without_head": count})
    assert [row[2] for row in markdown([tmp_path])[1].values()] == ["65,664", "65,536"]
    text, _, _ = table([tmp_path], "csv", published=False)
    assert {r["parameters"] for r in csv.DictReader(io.StringIO(text))} == {"65664", "65536"}


def test_odd_names_break_neither_markdown_nor_latex(tmp_path):
    name = r"a|b $^{}\~_&%#*"
    results(tmp_path, name, {"cifar": 50.0})
    row = table([tmp_path], "markdown", published=False)[0].splitlines()[3]
    assert row.startswith(r"| a\|b $^{}\\~_&%#\* | ")
    row = next(line for line in table([tmp_path], "latex", published=False)[0].splitlines() if "50.0" in line)
    escaped = r"a\textbar{}b \$\textasciicircum{}\{\}\textbackslash{}\textasciitilde{}\_\&\%\#*"
    assert row.startswith(escaped + " & ")


def test_a_row_that_is_not_there_yet_is_made_by_the_command_that_is_named(tmp_path, capsys):
    results(tmp_path, "dash", {"mini_location": 50.0}, seeds=(0, 1), synthetic=True)
    assert main(["vtab", str(tmp_path), "--against", "lora"]) == 2
    said = capsys.readouterr().err
    assert "no row is called that; the rows are dash" in said
    assert "run: python train_vtab.py --task mini_location --methods lora --seeds 0 1," in said
    assert said.count("\n") == 1
    assert main(["vtab", str(tmp_path), "--against", "dash"]) == 2
    assert "the only row there is" in capsys.readouterr().err
    assert main(["vtab", str(tmp_path / "none"), "--against", "lora"]) == 2
    said = capsys.readouterr().err
    assert "make some first: python train_vtab.py --task mini_location --methods lora dash" in said
    assert said.count("\n") == 1


def test_differences_of_nothing_have_no_sign(tmp_path, capsys):
    results(tmp_path, "lora", {"cifar": 50.0, "dtd": 40.0, "svhn": 30.0})
    results(tmp_path, "dash", {"cifar": 49.999, "dtd": 40.001, "svhn": 30.0})
    assert main(["vtab", str(tmp_path), "--compact", "--against", "lora"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| dash | lora")]
    assert line == "| dash | lora | 0.00 | 0.00 | 0.00 | 3 | 0.00 (0.00 to 0.00) |"

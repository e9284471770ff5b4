"""Reports of made-up runs, whose every number is known."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from allmem.errors import AllMemError
from allmem.evaluation.report import drawing, make_report
from allmem.evaluation.report.paper import paper_tables
from allmem.evaluation.runner import evaluate
from allmem.evaluation.task import Row, Setting
from tests.evaluation.made_runs import MadeModel, MadeTask, knows, plain, run

SAID = "</td><img src=https://example.org/x.png onerror=alert(1)> | \\| a"
HOSTILE = "<script>alert(1)</script> | `x` $y$ https://example.org"


def numbers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))


def text(folder: Path) -> str:
    return (folder / "report" / "report.md").read_text(encoding="utf-8")


def score(told: dict[str, Any], task: str, label: str, metric: str = "exact") -> dict[str, Any]:
    return told["tasks"][task]["models"][label]["scores"][metric]


def tables(markdown: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, cell by cell, without their lines of dashes."""
    found: list[list[list[str]]] = []
    before = ""
    for line in markdown.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found[-1].append([cell.strip() for cell in cells])
        before = line
    for table in found:
        assert all(re.fullmatch(":--|--:", cell) for cell in table.pop(1))
    return found


@pytest.fixture(autouse=True)
def _small_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer dots are drawn faster."""
    monkeypatch.setattr(drawing, "DPI", 30)


LVEVAL = ("lveval/factrecall_en_128k", "lveval/cmrc_mixup_128k", "lveval/lic_mixup_128k")


@pytest.fixture
def two_models(tmp_path: Path) -> Path:
    """Teacher and student, on short tasks and on LV-Eval; of each four rows."""
    teacher = knows(
        "teacher",
        {
            "short/arc_easy": [0, 1, 2],
            "short/ifeval": [0, 1],
            LVEVAL[0]: [0, 1, 2, 3],
            LVEVAL[1]: [0],
            LVEVAL[2]: [],
        },
    )
    student = knows(
        "student",
        {
            "short/arc_easy": [0, 3],
            "short/ifeval": [0, 1],
            LVEVAL[0]: [],
            LVEVAL[1]: [0, 1],
            LVEVAL[2]: [2],
        },
        window=512,
        sinks=64,
    )
    tasks = [plain("short/arc_easy"), plain("short/ifeval"), *map(plain, LVEVAL)]
    known = run(tmp_path, [teacher, student], tasks, {"lveval-128k": LVEVAL})
    make_report([tmp_path], known=known)
    return tmp_path


def test_numbers_are_those_of_the_rows(two_models: Path) -> None:
    told = numbers(two_models)
    means = {
        (task, label): (score(told, task, label)["mean"], score(told, task, label)["n"])
        for task in told["tasks"]
        for label in ("teacher", "student")
    }
    assert means["short/arc_easy", "teacher"] == (75, 4)
    assert means["short/arc_easy", "student"] == (50, 4)
    assert means[LVEVAL[0], "student"] == (0, 4)
    student = told["tasks"]["short/arc_easy"]["models"]["student"]
    assert student["difference"]["mean"] == -25
    assert student["difference"]["n"] == 4
    assert told["tasks"]["short/arc_easy"]["models"]["teacher"]["difference"] is None
    assert student["lengths"]["prompt_mean"] == 100


def test_averages_are_means_of_the_tasks_means_with_and_without_the_deciding_sets(
    two_models: Path,
) -> None:
    averages = {
        (one["block"], one["name"]): {
            label: (own["score"]["mean"], (own["difference"] or {}).get("mean"))
            for label, own in one["models"].items()
        }
        for one in numbers(two_models)["averages"]
    }
    assert averages["LV-Eval 128k", "Average"] == {
        "teacher": (pytest.approx((100 + 25 + 0) / 3), None),
        "student": (pytest.approx((0 + 50 + 25) / 3), pytest.approx((-100 + 25 + 25) / 3)),
    }
    assert averages["LV-Eval 128k", "Average without factrecall"] == {
        "teacher": (12.5, None),
        "student": (37.5, 25),
    }


def test_the_tables_show_them_beside_the_paper_s(two_models: Path) -> None:
    short = tables(text(two_models))[0]
    assert short[0][:4] == ["Category", "Task", "teacher", "student"]
    rows = {row[1]: row for row in short}
    assert rows["ARC-Easy"][0] == "Knowledge"
    assert re.fullmatch(r"75\.0 ± [\d.]+ \(n=4\)", rows["ARC-Easy"][2])
    assert rows["ARC-Easy"][4:] == ["70.0 / 70.2", "84.5 / 84.7"]
    assert rows["IFEval"][:2] == ["Alignment", "IFEval"]
    # An average over two tasks is not the paper's.
    assert rows[""][4:] == ["", ""]
    long = tables(text(two_models))[2]
    assert long[1][:3] == ["LV-Eval 128k", "factrecall_en_128k", "100"]
    assert long[1][5] == "1.67 / 1.1 / 1.59 / 7.5"


def test_equal_answers_have_no_interval_to_show(two_models: Path) -> None:
    short = {row[1]: row for row in tables(text(two_models))[0]}
    long = {row[1]: row for row in tables(text(two_models))[2]}
    assert long["factrecall_en_128k"][3] == "100.0 (n=4)"
    assert "±" in short["IFEval"][2]


def test_a_difference_is_called_worse_only_where_its_interval_leaves_out_zero(
    tmp_path: Path,
) -> None:
    tasks = [plain(f"short/{name}", 8) for name in ("arc_easy", "ifeval", "ceval")]
    tasks.append(plain("short/math500", 3))
    all_of_them = {task.name: range(8) for task in tasks}
    some = {"short/arc_easy": [0, 1], "short/ifeval": range(7), "short/ceval": range(8)}
    known = run(tmp_path, [knows("teacher", all_of_them), knows("student", some)], tasks)
    make_report([tmp_path], known=known)
    table = next(t for t in tables(text(tmp_path)) if t[0] == ["Task", "student"])
    told = dict(table[1:])
    assert re.fullmatch(r"\*\*-75\.0 ± [\d.]+ worse\*\* \(n=8\)", told["short/arc_easy"])
    assert re.fullmatch(r"-12\.5 ± [\d.]+ \(n=8\)", told["short/ifeval"])
    assert told["short/ceval"] == "+0.0 (n=8)"
    # Three rows are no evidence, however they differ.
    assert told["short/math500"] == "-100.0 (n=3)"


def test_the_paper_s_numbers_are_transcribed_as_its_own_averages_say() -> None:
    for table in paper_tables()[1:]:
        for group, printed in table.averages.items():
            rows = [row.scores for row in table.rows.values() if row.group == group]
            for column, average in zip(zip(*rows, strict=True), printed, strict=True):
                assert sum(column) / len(rows) == pytest.approx(average, abs=0.0051)
    assert [len(table.rows) for table in paper_tables()] == [10, 19, 19]


def test_paper_columns_are_split_by_base_model() -> None:
    first, second = paper_tables()[0].by_base()
    assert list(first.models) == ["Qwen3-0.6B", "Qwen3-0.6B-AllMem"]
    assert second.rows["short/ifeval"].scores == [68.6, 69.0]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Names and cells that a careless report would take for markup."""
    cells = {str(i): {"say": ("<b>bold</b>", "a|b")[i % 2]} for i in range(4)}
    task = MadeTask("misc/hostile", cells)
    said = MadeModel("_b", {"misc/hostile 0": SAID})
    known = run(tmp_path, [knows(HOSTILE, {"misc/hostile": [0]}), said], [task])
    make_report([tmp_path], known=known)
    return tmp_path


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_stands_alone_and_runs_nothing(hostile: Path) -> None:
    raw = (hostile / "report" / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(raw)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "b", "object", "a"} & set(page.tags)
    assert not re.search(r"url\(|@import", raw)
    # What was named is shown as it was named.
    assert HOSTILE in page.texts
    assert "<b>bold</b>" in page.texts
    assert SAID in page.texts


def test_names_do_not_break_markdown_tables(hostile: Path) -> None:
    found = tables(text(hostile))
    assert found
    for table in found:
        assert len({len(row) for row in table}) == 1, table[0]
    assert "<script>" not in text(hostile)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    cells = {f"{n}-{i}": {"length": n, "depth": i / 2} for n in (1024, 2048) for i in range(3)}
    known = run(
        tmp_path / "run", [knows("a", {"probes/x": ["1024-0"]})], [MadeTask("probes/x", cells)]
    )
    written = [make_report([tmp_path / "run"], tmp_path / name, known) for name in "ab"]
    first, second = ({path.name: path.read_bytes() for path in one.files} for one in written)
    assert first == second
    pictures = [content for name, content in first.items() if name.endswith(".png")]
    assert pictures
    assert all(b"Software" not in content for content in pictures)


def test_cells_of_length_and_depth_become_a_heat_map_and_what_is_in_sight_is_marked(
    tmp_path: Path,
) -> None:
    cells = {
        f"{length}-{depth}": {
            "length": length,
            "depth": depth,
            **({"beyond": "no"} if depth == 1.0 else {}),
        }
        for length in (1024, 4096)
        for depth in (0.0, 1.0)
    }
    model = knows("student", {"probes/needles": ["1024-0.0", "1024-1.0", "4096-1.0"]})
    made = make_report(
        [tmp_path], known=run(tmp_path, [model], [MadeTask("probes/needles", cells)])
    )
    assert "probes-needles-exact.png" in [path.name for path in made.files]
    table = next(t for t in tables(text(tmp_path)) if "Depth (%)" in t[0])
    assert table[0] == ["Model", "Depth (%)", "1,024 tokens", "4,096 tokens"]
    assert table[1] == ["student", "0", "100.0 (n=1)", "0.0 (n=1)"]
    assert table[2] == ["student", "100", "100.0 † (n=1)", "100.0 † (n=1)"]
    assert "† within the attention's sight" in text(tmp_path)
    assert "Answers that the attention saw itself do not count here" in text(tmp_path)
    assert score(numbers(tmp_path), "probes/needles", "student")["mean"] == 50
    assert score(numbers(tmp_path), "probes/needles", "student")["n"] == 2


def test_cells_that_nobody_knows_are_shown_as_a_table(tmp_path: Path) -> None:
    cells = {f"{colour}{i}": {"colour": colour} for colour in ("red", "blue") for i in range(4)}
    model = knows("m", {"other/colours": ["red0", "red1", "red2", "blue0"]})
    make_report([tmp_path], known=run(tmp_path, [model], [MadeTask("other/colours", cells)]))
    table = next(t for t in tables(text(tmp_path)) if t[0] == ["colour", "m"])
    assert [row[0] for row in table[1:]] == ["blue", "red"]
    assert table[1][1].startswith("25.0")
    assert table[2][1].startswith("75.0")


def test_former_values_are_drawn_beside_the_recall(tmp_path: Path) -> None:
    task = MadeTask("probes/updates", {f"{n}-{i}": {"values": n} for n in (2, 4) for i in range(2)})
    model = MadeModel("m", {"probes/updates 2-0": "right", "probes/updates 4-1": "stale"})
    made = make_report([tmp_path], known=run(tmp_path, [model], [task]))
    assert {"probes-updates-exact.png", "probes-updates-stale.png"} <= {p.name for p in made.files}
    by_cell = numbers(tmp_path)["tasks"]["probes/updates"]["models"]["m"]["cells"]
    assert [(c["cell"]["values"], c["scores"]["stale"]["mean"]) for c in by_cell] == [
        (2, 0),
        (4, 50),
    ]


def test_a_suite_by_length_averages_its_tasks_at_each(tmp_path: Path) -> None:
    cells = {f"{n}-{i}": {"length": n} for n in (1024, 2048) for i in range(2)}
    right = {"ruler/a": ["1024-0", "1024-1", "2048-0"], "ruler/b": ["1024-0"]}
    tasks = [MadeTask("ruler/a", cells), MadeTask("ruler/b", cells)]
    make_report([tmp_path], known=run(tmp_path, [knows("m", right)], tasks))
    table = next(t for t in tables(text(tmp_path)) if t[0] == ["m", "1k", "2k"])
    assert [cell.split()[0] for cell in table[3]] == ["Average", "75.0", "25.0"]
    # There is no mean over lengths, of a task or of all.
    assert not [table for table in tables(text(tmp_path)) if table[0][:2] == ["Task", "Measure"]]
    assert numbers(tmp_path)["averages"] == []
    assert numbers(tmp_path)["tasks"]["ruler/a"]["models"]["m"]["scores"] == {}


def test_differences_of_a_suite_by_length_are_by_length_too(tmp_path: Path) -> None:
    cells = {f"{n}-{i}": {"length": n} for n in (1024, 2048) for i in range(2)}
    models = [knows("a", {"ruler/a": ["1024-0", "1024-1"]}), knows("b", {"ruler/a": ["2048-0"]})]
    make_report([tmp_path], known=run(tmp_path, models, [MadeTask("ruler/a", cells)]))
    told = [table for table in tables(text(tmp_path)) if table[0] == ["b", "1k", "2k"]]
    assert [cell.split()[0] for cell in told[1][1]] == ["ruler/a", "-100.0", "+50.0"]


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    task, later = plain("short/arc_easy"), plain("short/ifeval")
    task.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [knows("m", {"short/arc_easy": [0]})], [task, later])
    made = make_report([tmp_path], known={"short/arc_easy": task, "short/ifeval": later})
    assert any("m has rows of short/arc_easy (3 of 4)" in warning for warning in made.warnings)
    assert any("no answers to short/ifeval (m) yet" in warning for warning in made.warnings)
    assert "(n=3 of 4)" in text(tmp_path)
    later.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [knows("m", {"short/arc_easy": [0]})], [plain("short/arc_easy"), later])
    make_report([tmp_path], known={"short/arc_easy": task, "short/ifeval": later})
    short = {row[1]: row for row in tables(text(tmp_path))[0]}
    assert short[""][2].endswith("(n=6 of 8)")
    assert numbers(tmp_path)["tasks"]["short/arc_easy"]["models"]["m"]["expected_rows"] == 4


def test_what_a_model_was_never_asked_is_not_missing(tmp_path: Path) -> None:
    names = ("short/arc_easy", "short/ifeval", "short/ceval", "short/math500")
    known = {name: plain(name) for name in names}
    one, other, cut_off, later = known.values()
    teacher, student = knows("teacher", {}), knows("student", {})
    evaluate([teacher, student], [one], Setting(), tmp_path, command="both")
    evaluate([student], [other], Setting(), tmp_path, command="the student alone")
    assert make_report([tmp_path], known=known).warnings == []
    short = {row[1]: row for row in tables(text(tmp_path))[0]}
    assert short["IFEval"][2:4] == ["–", "0.0 (n=4)"]
    cut_off.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        evaluate([student], [cut_off, later], Setting(), tmp_path, batch=1, command="cut off")
    begun, missing = make_report([tmp_path], known=known).warnings
    assert begun == "Incomplete: student has rows of short/ceval (1 of 4)."
    assert "has no answers to short/math500 (student) yet" in missing


def test_what_was_cut_and_what_met_the_limit_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = plain("short/arc_easy")
    answer = MadeTask.answer

    def cut(self: MadeTask, *args: Any) -> list[Row]:
        rows = answer(self, *args)
        # The first two of the rows lost 10 and 30 tokens; the last one met the limit.
        number = int(args[1][0].id)
        return [row | {"cut": (10, 30, 0, 0)[number], "finished": number < 3} for row in rows]

    monkeypatch.setattr(MadeTask, "answer", cut)
    make_report([tmp_path], known=run(tmp_path, [knows("m", {})], [task]))
    own = numbers(tmp_path)["tasks"]["short/arc_easy"]["models"]["m"]
    assert own["cut"] == {"rows": 2, "tokens": 20}
    assert own["lengths"]["unfinished"] == 1
    row = next(t for t in tables(text(tmp_path)) if "At the limit" in t[0])[1]
    assert row[6:8] == ["50.0 %", "20"]
    assert row[9] == "25.0 %"


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    task, other = plain("short/arc_easy"), plain("short/ifeval")
    teacher = knows("teacher", {"short/arc_easy": [0, 1, 2, 3]})
    known = run(tmp_path / "a", [teacher], [task])
    # The same teacher with another task goes on in its column; a namesake does not.
    known |= run(tmp_path / "b", [teacher], [other])
    namesake = knows("teacher", {"short/arc_easy": [0]}, window=16)
    run(tmp_path / "c", [namesake], [task])
    made = make_report([tmp_path / name for name in "abc"], tmp_path / "report", known)
    assert made.models == ["teacher", "teacher [c]"]
    told = numbers(tmp_path)
    assert told["tasks"]["short/arc_easy"]["models"]["teacher [c]"]["difference"]["mean"] == -75
    assert list(told["tasks"]["short/ifeval"]["models"]) == ["teacher"]
    assert made.warnings == []


def test_runs_of_different_settings_are_told_apart_by_name(tmp_path: Path) -> None:
    task = plain("short/arc_easy")
    known = run(tmp_path / "a", [knows("one", {})], [task], limit=4, data=tmp_path)
    run(tmp_path / "b", [knows("two", {})], [task], limit=2)
    made = make_report([tmp_path / "a", tmp_path / "b"], known=known)
    # Where the data lie changes nothing.
    assert made.warnings == [
        "Not comparable: the columns differ in limit (4 for one; 2 for two) in short/arc_easy."
    ]
    assert "Not comparable" in text(tmp_path / "a")


def test_settings_that_tasks_of_a_column_do_not_share_are_told_and_nothing_is_averaged(
    tmp_path: Path,
) -> None:
    model = knows("m", {"short/arc_easy": [0]})
    tasks = [plain("short/arc_easy"), plain("short/ifeval"), plain("short/ceval")]
    known = run(tmp_path, [model], tasks[:2], limit=4, seed=1)
    known |= run(tmp_path, [model], tasks[2:], limit=4, seed=2)
    made = make_report([tmp_path], known=known)
    assert made.warnings == [
        "Mixed: tasks of m differ in seed (1 in short/arc_easy, short/ifeval; 2 in short/ceval)."
    ]
    assert numbers(tmp_path)["averages"][0]["models"]["m"]["score"] is not None
    known |= run(tmp_path, [model], [plain("short/math500")], protocol="paper", seed=2)
    made = make_report([tmp_path], known=known)
    assert any(
        "differ in protocol (official in short/arc_easy, short/ifeval, short/ceval; paper in "
        "short/math500); they are not averaged" in warning
        for warning in made.warnings
    )
    assert numbers(tmp_path)["averages"][0]["models"]["m"]["score"] is None
    # Under which setting each task was run, and not what the last command said.
    told = {row[0]: row[1] for table in tables(text(tmp_path)) for row in table if len(row) == 2}
    assert told["protocol"].endswith("paper in short/math500")
    assert "setting.protocol" not in told


def test_models_that_were_asked_other_examples_have_no_difference(tmp_path: Path) -> None:
    task = plain("short/arc_easy")
    known = run(tmp_path / "a", [knows("one", {})], [task])
    run(tmp_path / "b", [knows("two", {})], [plain("short/arc_easy", 3)])
    made = make_report([tmp_path / "a", tmp_path / "b"], known=known)
    [warning] = made.warnings
    assert "two and one were asked different examples of short/arc_easy; no diff" in warning
    told = numbers(tmp_path / "a")["tasks"]["short/arc_easy"]["models"]
    assert told["two"]["difference"] is None
    assert told["two"]["scores"]["exact"]["n"] == 3


def test_what_a_model_is_its_files_say(tmp_path: Path) -> None:
    """Two models under one label, as a run made by other means may hold them."""
    tasks = [plain("short/arc_easy"), plain("short/ifeval")]
    known = run(tmp_path, [knows("m", {})], tasks)
    path = tmp_path / "m" / "short__ifeval.jsonl"
    path.write_text(path.read_text().replace('{"weights": "m"}', '{"weights": "other"}', 1))
    made = make_report([tmp_path], known=known)
    assert len(made.models) == 2
    told = numbers(tmp_path)
    assert [model["identity"]["weights"] for model in told["models"]] == ["m", "other"]
    assert list(told["tasks"]["short/ifeval"]["models"]) == [made.models[1]]
    assert told["averages"][0]["models"]["m"]["score"] is None


def test_a_run_without_rows_is_refused(tmp_path: Path) -> None:
    task = plain("short/arc_easy")
    task.stop_after = 0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [knows("m", {})], [task])
    with pytest.raises(AllMemError, match=r"no answer yet in .*allmem evaluate"):
        make_report([tmp_path], known={task.name: task})
    assert not (tmp_path / "report").exists()


def test_a_folder_that_is_no_run_and_a_run_named_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match="is no run"):
        make_report([tmp_path])
    with pytest.raises(AllMemError, match="named twice"):
        make_report([tmp_path, tmp_path / "."])


COSTS = {
    "counted": "products",
    "not_counted": "norms",
    "rows": [
        {
            "length": length,
            "reading": reading,
            "layers_prefill_flops_per_token": 10.0 * length
            if reading == "full attention"
            else 512.0,
            "layers_decode_flops": 10,
            "cache_bytes": 4 * length if reading == "full attention" else 1024,
        }
        for length in (1024, 4096)
        for reading in ("full attention", "AllMem")
    ],
}


def test_costs_in_the_folder_are_drawn_with_their_share(tmp_path: Path) -> None:
    known = run(tmp_path, [knows("m", {})], [plain("short/arc_easy")])
    (tmp_path / "cost.json").write_text(json.dumps(COSTS))
    make_report([tmp_path], known=known)
    assert numbers(tmp_path)["cost"] == {tmp_path.name: COSTS}
    table = next(t for t in tables(text(tmp_path)) if t[0][0].startswith("kept of the text"))
    assert table[2] == ["4,096", "1.638e+04", "1024 (6.2 %)"]


def test_a_file_of_costs_that_is_none_is_refused(tmp_path: Path) -> None:
    known = run(tmp_path, [knows("m", {})], [plain("short/arc_easy")])
    (tmp_path / "cost.json").write_text('{"rows": [{"length": 1}]}')
    with pytest.raises(AllMemError, match=r"cost\.json is not what `allmem cost --json` writes"):
        make_report([tmp_path], known=known)


def test_one_checkpoint_with_several_sizes_is_shown_as_a_grid(tmp_path: Path) -> None:
    task = plain("probes/recall")
    models = [
        knows(f"m {window}/{chunk}", {task.name: range(right)}, window=window, chunk=chunk)
        for window, chunk, right in ((64, 16, 1), (64, 32, 2), (128, 16, 3))
    ]
    for model in models:
        model.about["weights"] = "the same"
    made = make_report([tmp_path], known=run(tmp_path, models, [task]))
    assert "by-window-and-chunk-1.png" in [path.name for path in made.files]
    table = next(t for t in tables(text(tmp_path)) if "Window" in t[0])
    assert table[0] == ["Task", "Window", "chunk 16", "chunk 32"]
    assert [[cell.split()[0] for cell in row[1:]] for row in table[1:] if row[0]] == [
        ["64", "25.0", "50.0"]
    ]
    assert table[2][2].startswith("75.0")
    assert table[2][3] == "–"

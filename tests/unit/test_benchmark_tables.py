# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/tables.py`: rows worked by hand, markers that meet their makers, pages that stay when nothing is kept."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def tables():
    return _script("tables")


def _script(name):
    specification = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _found(figures, script="x", words="--quick", **more):
    where = {"machine": "A, 2 cores", "torch": "2.13", "date": "2026-01-02", "commit": "abc", "load": 1.0}
    return {"script": script, "words": words, "figures": figures} | where | more


def _cells(table):
    """Cells of all lines but the ruler."""
    lines = table.split("\n")
    assert set(lines[1]) <= set("|-:")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]]


PAGE = "# A\n\n<!-- table: startup -->\n\nold rows\n\nold line\n\n<!-- /table -->\n\nText.\n"
START = {
    "opendino --help": {"cpu_s": 0.094, "wall_s": 0.1, "peak_mib": 18},
    "import torch": {"cpu_s": 1.5, "wall_s": 1.6, "peak_mib": 219},
}


def test_a_table_is_written_between_its_markers_and_nothing_else(tables):
    new = tables.refresh(PAGE, {"startup --quick": _found({"rows": START}, "startup")})
    assert new == (
        "# A\n\n<!-- table: startup -->\n\n"
        "| command           | processor s | wall s | MiB |\n"
        "|-------------------|------------:|-------:|----:|\n"
        "| `opendino --help` |        0.09 |   0.10 |  18 |\n"
        "| `import torch`    |        1.50 |   1.60 | 219 |\n\n"
        "`python benchmarks/startup.py --quick`; A, 2 cores, torch 2.13, 2026-01-02, commit abc; load 1.0.\n\n"
        "<!-- /table -->\n\nText.\n"
    )


def test_a_second_time_changes_nothing(tables):
    kept = {"startup --quick": _found({"rows": START}, "startup")}
    once = tables.refresh(PAGE, kept)
    assert tables.refresh(once, kept) == once


@pytest.mark.parametrize("kept", [{}, {"startup --quick": {"figures": None}}, {"startup": {"figures": {"rows": {}}}}])
def test_what_was_not_measured_leaves_its_rows_and_its_line(tables, kept):
    assert tables.refresh(PAGE, kept) == PAGE


def test_a_table_of_several_commands_waits_for_all(tables):
    page = PAGE.replace("startup", "embed")
    row = {"model": "tiny", "precision": "fp32", "default_ms": 6.0}
    row |= {"ms": {"fast, optimized model": 2.0, "transformers": 6.0}, "least_cosine": {"fast, optimized model": 1.0}}
    first, second = tables.TABLES["embed"].commands
    kept = {first: _found({"rows": [row]})}
    assert tables.refresh(page, kept) == page
    kept[second] = _found({"rows": [row | {"model": "B/14"}]}, machine="B")
    assert "A, 2 cores and B, torch 2.13, 2026-01-02, commit abc; load 1.0." in tables.refresh(page, kept)


def test_loads_that_differ_are_a_range_and_old_records_have_none(tables):
    two = [_found({}, load=1.24), _found({}, load=3.0)]
    assert tables.where(two).endswith("; load 1.2 to 3.0")
    old = {"machine": "A", "date": "d", "commit": "c"}
    assert tables.where([old]) == "A, d, commit c"


def test_a_command_is_told_as_it_ran(tables):
    assert tables.command(_found({})) == "python benchmarks/x.py --quick"
    assert tables.command(_found({}, python="PEERS", words="")) == "PEERS benchmarks/x.py"
    assert tables.command(_found({}, words="--quick --peer PEERS", ran="--quick")) == "python benchmarks/x.py --quick"


def test_every_marker_has_a_maker_and_every_maker_a_marker(tables):
    found = []
    for name in tables.DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        whole = [marked[2] for marked in tables.MARKED.finditer(text)]
        assert whole == re.findall(r"<!-- table: (\w+) -->", text), f"{name}: a table without its end"
        found += whole
    assert sorted(found) == sorted(tables.TABLES)


def test_every_command_of_a_table_is_one_that_make_bench_runs(tables):
    path = sys.path[:]
    every = _script("all")
    sys.path[:] = path
    listed = {every.public(line) for line in every.LONG}
    assert {command for table in tables.TABLES.values() for command in table.commands} <= listed


def test_the_documents_are_what_is_kept(tables):
    kept = tables.kept(tables.KEPT)
    for name in tables.DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert tables.refresh(text, kept) == text, f"{name}: python benchmarks/tables.py"


def test_both_front_pages_have_the_figures_of_the_results(tables):
    """The row of CIFAR-10, kept by hand beside that of the demonstration."""
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = next(marked for marked in tables.MARKED.finditer(results) if marked[2] == "eval_cifar10")[0]
    nearest = [re.search(rf"^\| {kind} *\| *([\d.]+)", rows, re.MULTILINE)[1] for kind in tables.KINDS]
    for name in ("README.md", "README.ar.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        row = next(line for line in text.splitlines() if line.startswith("| CIFAR-10"))
        assert [cell.strip() for cell in row.split("|")[2:5]] == nearest, name


def test_numbers_have_three_digits(tables):
    assert [tables.short(value) for value in (0.123, 9.876, 12.345, 1234.5, None)] == [
        "0.12", "9.88", "12.3", "1,234", "-",
    ]  # fmt: skip


def test_a_step_by_its_phases(tables):
    phases = {"data": 0.0, "teacher": 0.5, "student": 1.0, "losses": 0.02, "backward": 2.0}
    phases |= {"optimizer": 0.02, "ema": 0.01, "clip": 0.03}
    one = {"img_per_s": 1.125, "peak_memory_bytes": 3 * 2**29, "phases": phases}
    assert _cells(tables.train_step([_found(one, words="a=1")]))[1] == [
        "`a=1`", "1.12", "1.50 GiB", "0.50 s", "1.00 s", "0.02 s", "2.00 s", "0.06 s",
    ]  # fmt: skip


def test_a_step_beside_its_peer_and_without(tables):
    row = {"prototypes": 4096, "dtype": "fp32", "seconds": {"plain": 3.0, "fast": 2.0, "lightly": 4.0, "built": 2.8}}
    row |= {"ratio": 1.5, "lightly_over_fast": 2.0, "built_over_fast": 1.4, "share": 0.805}
    row["peak_mib"] = {"plain": 1234.5, "fast": 999.4}
    alone = row | {"seconds": {"plain": 3.0, "fast": 2.0}}
    del alone["lightly_over_fast"], alone["built_over_fast"]
    lines = _cells(tables.step_cpu([_found({"batch": 2, "rows": [row, alone]}), _found({"batch": 8, "rows": [alone]})]))
    figures = ["1.50", "1.40", "2.00", "80 %", "1,234", "999"]
    assert lines[1] == ["4,096", "fp32", "2", "4.00", "3.00", "2.80", "2.00", *figures]
    figures[1:3] = "-", "-"
    assert lines[2] == ["4,096", "fp32", "2", "-", "3.00", "-", "2.00", *figures]
    assert lines[3] == ["4,096", "fp32", "8", "-", "3.00", "-", "2.00", *figures]


def test_a_fast_step_without_one_of_its_ways(tables):
    row = {"prototypes": 65536, "dtype": "bf16", "without": {"blocks": {"seconds": 2.525, "ratio": 1.234}}}
    lines = _cells(tables.step_ways([_found({"rows": [row]})]))
    assert lines[0][2:] == list(tables.STEP_WAYS.values())
    assert lines[1] == ["65,536", "bf16", "-", "-", "2.52 s, 1.23", *["-"] * 5]


def test_attention_puts_both_passes_and_types_of_a_shape_in_a_line(tables):
    rows = [
        {"shape": "1 x 2 x 3", "dtype": dtype, "pass": work, "fused": fused, "written": 2.0}
        for dtype, work, fused in (
            ("bfloat16", "forward", 3.0), ("bfloat16", "forward, backward", 8.0),
            ("float32", "forward", 1.0), ("float32", "forward, backward", 1.8),
        )
    ]  # fmt: skip
    assert _cells(tables.attention([_found({"rows": rows})]))[1] == [
        "1 x 2 x 3", "3.0", "2.0", "1.5", "8.0", "2.0", "4.0", "0.5", "0.9",
    ]  # fmt: skip


LOADER = {
    "ways": {
        "as they are": {
            "kb": 140.2,
            "images_per_second_per_core": {
                "pillow": 50.0,
                "fast": 200.0,
                "fast, normalised here": 190.0,
                "torchvision": 25.0,
            },
            "over_torchvision": {"pillow": 2.0, "fast": 8.0, "torchvision": 1.0},
        }
    },
    "waits": [{"thread": "always", "of": 0.7, "made": 125.4, "taken": 87.8, "waits": 0.0041}],
}


def test_the_loader_by_way_and_by_what_waits(tables):
    lines = _cells(tables.loader_ways([_found(LOADER)]))
    assert lines[0] == ["way", "140 kB: ms an image", "images/s", "x torchvision"]
    assert lines[1:4] == [
        ["torchvision", "40.0", "25", "1.0"],
        ["`loader.decoder=pillow`", "20.0", "50", "2.0"],
        ["`loader.decoder=fast`", "5.00", "200", "8.0"],
    ]
    assert lines[4][1:] == ["5.26", "190", "-"]
    assert lines[5][1:] == ["-", "-", "-"]
    assert _cells(tables.loader_waits([_found(LOADER)]))[1] == ["`always`", "125", "87.8", "70%", "0.4 %"]


def test_the_loader_by_phase_and_its_listing(tables):
    listing = {"paths": 1_000_000, "seconds": 2.5, "mb": 27.1, "scan_seconds_a_million": 3.25}
    found = [_found({"cases": [{"images": "few", "phases": {"decode": 1.5, "crops": 2.0}}], "listing": listing})]
    assert _cells(tables.loader_phases(found)) == [
        ["images", "decode", "crops", "all"],
        ["few", "1.50", "2.00", "3.50"],
    ]
    assert _cells(tables.loader_listing(found))[1] == ["1,000,000", "2.50", "27", "3.25"]


def test_embedding_compares_equal_precisions_and_the_default(tables):
    row = {"model": "tiny", "precision": "int8", "default_ms": 20.0, "ms": {"fast, optimized model": 8.0}}
    row["ms"]["transformers"] = 20.5
    row["least_cosine"] = {"fast, optimized model": 0.99955, "transformers": 1.0}
    assert _cells(tables.embed([_found({"rows": [row]})]))[1] == [
        "192 wide, 4 blocks", "int8", "-", "-", "8.0", "20.5 (fp32)", "-", "2.50", "0.99955",
    ]  # fmt: skip


CELL = {"cell": "S 224 b8 bf16", "img_per_s": {"optimized": 14.0, "plain": 13.0, "transformers": 10.0}, "ratio": 1.4}


def test_inference_by_cell(tables):
    row = CELL | {"share": 0.84, "share_of_peer": 0.625}
    assert _cells(tables.forward([_found({"rows": [row]})]))[1] == [
        "S 224 b8 bf16", "14.0", "13.0", "10.0", "-", "1.40", "84 %, 62 %", "1.60", "1.5",
    ]  # fmt: skip
    other = row | {"cell": "B 518 b1 fp32", "img_per_s": {"optimized": 2.0, "timm": 1.0}}
    assert _cells(tables.forward_threads([_found({"rows": [row]}), _found({"rows": [other]})])) == [
        ["cell", "optimized", "plain", "transformers", "timm", "over the best peer", "aim"],
        ["S 224 b8 bf16", "14.0", "13.0", "10.0", "-", "1.40", "1.5"],
        ["B 518 b1 fp32", "2.00", "-", "-", "1.00", "1.40", "-"],
    ]
    memory = {
        "cell": "S 224 b1 fp32",
        "peak_mib": {"optimized": 6.6, "plain": 71.0, "transformers": 230.0, "timm": None},
    }
    assert _cells(tables.forward_memory([_found({"rows": [memory]})]))[1][1:] == ["6.60", "71.0", "230", "-"]
    aims = ["S 224 b1 fp32", "B 518 b1 bf16", "S 518 b4 fp32", "S 518 b1 bf16"]
    assert [tables.aim(cell) for cell in aims] == ["2.0", "-", "1.6", "2.0"]


def test_cheaper_numbers_are_named_as_they_are_written(tables):
    rows = {
        "plain fp32": {"img_per_s": 100.0, "knn": 38.2, "cosine": 1.0, "ratio": 1.0},
        "optimized bf16, merge 0.07": {"img_per_s": 152.0, "knn": 37.6, "cosine": 0.98512, "ratio": 1.52},
    }
    lines = _cells(tables.cheaper([_found({"rows": rows})]))
    assert lines[1:] == [
        ["plain, fp32", "38.2", "1.00000", "100", "1.00"],
        ['`"bf16", merge=0.07`', "37.6", "0.98512", "152", "1.52"],
    ]
    assert _cells(tables.cheaper_speed([_found({"rows": rows})]))[2] == ['`"bf16", merge=0.07`', "152", "1.52"]


HEAD = {"prototypes": 65536, "dtype": "fp32", "seconds": {"plain": 0.9, "chunked": 0.6}, "speed": 1.5, "memory": 2.6}
HEAD |= {"peak_mib": {"plain": 259.1, "chunked": 99.4}, "largest_gradient_difference": 2.1e-6}


def test_the_head_both_ways(tables):
    assert _cells(tables.head_loss([_found({"rows": [HEAD]})]))[1] == [
        "65,536", "fp32", "0.90 s, 259 MiB", "0.60 s, 99 MiB", "1.50", "2.6", "2e-06",
    ]  # fmt: skip


def test_small_protocols_a_line_a_row(tables):
    one = {"row": "pixels", "figures": {"k-NN": 38.55, "5 a class": 20.7, "logreg": 35.4, "linear": 37.8}}
    assert _cells(tables.eval_images([_found(one)]))[1] == ["pixels", "38.5", "20.7", "35.4", "37.8"]
    heads = {
        f"{head} {kind}": value for head in ("linear", "knn", "ms") for kind, value in (("mIoU", 9.3), ("aAcc", 41.3))
    }
    assert (
        _cells(tables.eval_pixels([_found({"row": "trained", "figures": heads})]))[1]
        == ["trained"] + ["9.3 / 41.3"] * 3
    )


def test_depth_beside_the_better_constant(tables):
    now = {"RMSE": 0.38, "AbsRel": 0.08, "d1": 93.2, "a constant's (mean)": 0.9, "a constant's (median)": 0.8}
    now["of the better constant's"] = 0.475
    found = [_found({"row": "trained", "split": split, "figures": now}) for split in ("views", "tiles")]
    assert _cells(tables.eval_stereo(found))[1:] == [
        ["constant, the mean", "0.90", "1.12", "0.90", "1.12"],
        ["trained", "0.38 / 0.08 / 93.2", "0.47", "0.38 / 0.08 / 93.2", "0.47"],
    ]


def test_cost_as_it_grows(tables):
    rows = [
        {"name": "images", "points": [[2, 2.54], [8, 11.5]], "power": 1.09, "each": 1.55},
        {"name": "prototypes", "points": [[4096, 2.5], [65536, 3.5]], "power": 0.12, "each": 1.9e-5},
    ]
    lines = _cells(tables.cost([_found({"rows": rows})]))
    assert lines[1] == ["images", "2: 2.54, 8: 11.50", "1.09", "1.55 s an image"]
    assert lines[2] == ["prototypes", "4,096: 2.50, 65,536: 3.50", "0.12", "19 us a prototype"]


def test_the_plan_by_model(tables):
    row = {"model": "a", "images/s": 21849.0, "of ideal": 0.98, "decode cores a GPU": 13.65}
    row |= {"GiB held": 2.869, "GiB kept": 513.04, "GiB recomputed": 123.4}
    rows = [row | {"gpus": 8}, row | {"gpus": 1024, "images/s": 181_950.0, "of ideal": 0.064}]
    now = {"gflop_per_image": {"a": 1374.4}, "batches": {"a": 2048}, "rows": rows}
    lines = _cells(tables.plan([_found(now)]))
    assert lines[0][2:] == [
        "8 GPUs: images/s",
        "1,024",
        "of ideal at 1,024",
        "decoding cores a GPU at 8",
        "GiB a GPU at 8: held, kept by a pass, recomputed",
    ]
    assert lines[1] == ["a, 2,048", "1,374", "21,800", "182,000", "0.06", "14", "2.87, 513, 123"]


def test_what_went_wrong_is_counted(tables):
    one = {"inputs": 1500, "refused": 1432, "failures": [[3, "late"]], "seconds": 1.481, "grown": 0.7, "files": 0}
    assert _cells(tables.fuzz([_found({"targets": {"config": one}})]))[1] == [
        "config", "1,500", "1,432", "1", "1.48", "1", "0",
    ]  # fmt: skip
    one = {"kills": 40, "starts": 60, "ends": 20, "failures": [], "seconds": 8.61}
    assert _cells(tables.drills([_found({"drills": {"train": one}})]))[1] == ["train", "40", "60", "20", "0", "8.6"]


def test_both_front_pages_say_the_same_figures(tables):
    found = [
        _found(LOADER), _found({"rows": [CELL]}), _found({"ours": 152.9, "faiss": None}), _found({"rows": [HEAD]}),
        _found({"rows": START | {"opendino.create": {"cpu_s": 1.76}}}),
    ]  # fmt: skip
    english, arabic = tables.readme(found), tables.readme_ar(found)
    numbers = [["200", "8", "25.0"], ["14.0", "10.0"], ["153"], ["99", "259"], ["0.1", "1.8", "1.5"]]
    for page in (english, arabic):
        for line, wanted in zip(page.split("\n")[2:], numbers, strict=True):
            cells = " ".join(line.split("|")[2:4])
            assert re.findall(r"\d+\.?\d*", cells) == wanted
    assert "timm -" in english
    assert "[" not in arabic


def test_every_kept_record_is_whole(tables):
    for path in tables.KEPT.glob("*.json"):
        one = json.loads(path.read_text(encoding="utf-8"))
        assert {"script", "words", "machine", "date", "commit", "seconds", "printed"} <= one.keys(), path.name

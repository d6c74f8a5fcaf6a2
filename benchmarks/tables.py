# SPDX-License-Identifier: Apache-2.0
"""Tables of the documents from what the benchmarks found: each between markers, rewritten in place.

    python benchmarks/tables.py

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; `TABLES` names the commands it needs and the
function that makes its rows of what they found. Where one of the commands is not in benchmarks/results/measured/, the
table stays as it is. The line below a table, made too, says the command, the machine, the date and the commit. What a
command found is the JSON object of its last line, under "figures" of what is kept (`all.py`).
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "results" / "measured"
DOCUMENTS = (
    "README.md",
    "README.ar.md",
    "docs/performance.md",
    "docs/results.md",
    "docs/scaling.md",
    "docs/reliability.md",
)
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)

Found = dict[str, Any]
"""What is kept of one command."""


class Table(NamedTuple):
    """How a table is made.

    Attributes:
        commands: what has to be kept for it, script and words.
        make: rows of what these found, in their order.
        said: of the line below in place of the commands; a dash for machine and date alone, "rtl" for these on a page
            that is read from right to left.
    """

    commands: tuple[str, ...]
    make: Callable[[Sequence[Found]], str]
    said: str = ""


def refresh(document: str, found: Mapping[str, Found]) -> str:
    """A document with every table that can be made, made anew."""

    def anew(marked: re.Match[str]) -> str:
        one = TABLES[marked[2]]
        needed = [found[command] for command in one.commands if found.get(command, {}).get("figures")]
        if len(needed) < len(one.commands):
            return marked[0]
        return f"{marked[1]}\n{one.make(needed)}\n\n{source(one, needed)}\n\n{marked[3]}"

    return MARKED.sub(anew, document)


def refresh_all(root: Path) -> None:
    """Every document below a folder."""
    found = kept(root / KEPT.relative_to(ROOT))
    for path in (root / name for name in DOCUMENTS):
        before = path.read_text(encoding="utf-8")
        after = refresh(before, found)
        if after != before:
            path.write_text(after, encoding="utf-8")


def kept(folder: Path) -> dict[str, Found]:
    """What is kept of each command, by script and words."""
    every = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {f"{one['script']} {one['words']}".strip(): one for one in every}


def title(one: Found) -> str:
    """Command, machine, torch, date and commit of one command."""
    return f"`{command(one)}`; {where([one])}."


def command(one: Found) -> str:
    """As it ran: by the Python with the peers where they take turns in one process; without --peer where none was."""
    return f"{one.get('python', 'python')} benchmarks/{one['script']}.py {one.get('ran', one['words'])}".strip()


def where(found: Sequence[Found]) -> str:
    """Machine, torch, date, commit and load; each that there is, in order, where they differ."""
    load = sorted(one["load"] for one in found if "load" in one)
    busy = f"load {load[0]:.1f}" + (f" to {load[-1]:.1f}" if load[-1] > load[0] else "") if load else ""
    parts = [each(one["machine"] for one in found)]
    if any("torch" in one for one in found):
        parts.append("torch " + each(one["torch"] for one in found if "torch" in one))
    parts.append(each(one["date"] for one in found))
    parts.append("commit " + each(one["commit"] for one in found))
    return "; ".join([", ".join(parts), *([busy] if busy else [])])


def each(values: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(values))


def source(one: Table, found: Sequence[Found]) -> str:
    """The line below a table."""
    if one.said in ("-", "rtl"):
        machine, date = each(part["machine"] for part in found), each(part["date"] for part in found)
        return f"{machine}; {date}" if one.said == "-" else f'<span dir="ltr">{machine}; {date}</span>'
    said = one.said or ", ".join(f"`{command(part)}`" for part in found)
    return f"{said}; {where(found)}."


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table with columns in line; the first `left` of them start on the left."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        sides = [
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(sides)} |"

    ruler = [f"{'-' * (width + 2)}" if at < left else f"{'-' * (width + 1)}:" for at, width in enumerate(widths)]
    return "\n".join([line(lines[0]), f"|{'|'.join(ruler)}|", *(line(cells) for cells in lines[1:])])


def short(value: float | None) -> str:
    """Three digits, or all of a larger number; a dash for what there is not."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def train_step(found: Sequence[Found]) -> str:
    rows = []
    for one in found:
        now, part = one["figures"], one["figures"]["phases"]
        little = part["optimizer"] + part["ema"] + part["clip"]
        seconds = [part["teacher"], part["student"], part["losses"], part["backward"], little]
        memory = f"{now['peak_memory_bytes'] / 2**30:.2f} GiB"
        rows.append([f"`{one['words']}`", short(now["img_per_s"]), memory, *(f"{value:.2f} s" for value in seconds)])
    parts = ["teacher", "student", "losses", "backward", "optimizer, EMA, clip"]
    return markdown(["words", "images/s", "peak memory", *parts], rows)


def step_cpu(found: Sequence[Found]) -> str:
    rows = []
    for batch, row in ((one["figures"]["batch"], row) for one in found for row in one["figures"]["rows"]):
        seconds = row["seconds"]
        times = [ratio(seconds.get(way)) for way in ("lightly", "plain", "built", "fast")]
        gains = [ratio(row.get(name)) for name in ("ratio", "built_over_fast", "lightly_over_fast")]
        peaks = [f"{row['peak_mib'][way]:,.0f}" for way in ("plain", "fast")]
        cell = [f"{row['prototypes']:,}", row["dtype"], str(batch)]
        rows.append([*cell, *times, *gains, percent(row["share"]), *peaks])
    header = [
        "prototypes",
        "type",
        "images",
        "lightly-train",
        "plain",
        "plain, attention as built",
        "fast",
        "fast over plain",
    ]
    header += ["over plain as built", "over lightly-train", "share of a product's rate", "peak MiB: plain", "fast"]
    return markdown(header, rows, left=2)


STEP_WAYS = {
    "linears": "linear layers by oneDNN",
    "attention": "attention written out",
    "blocks": "last layer and loss in blocks",
    "adamw": "fused AdamW",
    "ema": "teacher in one call",
    "sinkhorn": "Sinkhorn by scales",
    "needed": "last block for needed tokens",
    "memory": "memory kept",
}


def step_ways(found: Sequence[Found]) -> str:
    """What a fast step takes without one of its ways."""
    rows = []
    for row in found[0]["figures"]["rows"]:
        cells = [row.get("without", {}).get(way) for way in STEP_WAYS]
        told = ["-" if cell is None else f"{cell['seconds']:.2f} s, {cell['ratio']:.2f}" for cell in cells]
        rows.append([f"{row['prototypes']:,}", row["dtype"], *told])
    return markdown(["prototypes", "type", *STEP_WAYS.values()], rows, left=2)


def attention(found: Sequence[Found]) -> str:
    by_shape: dict[str, dict[tuple[str, str], Found]] = {}
    for row in found[0]["figures"]["rows"]:
        by_shape.setdefault(row["shape"], {})[row["dtype"], row["pass"]] = row
    rows = []
    for shape, cells in by_shape.items():
        line = [shape]
        for work in ("forward", "forward, backward"):
            cell = cells["bfloat16", work]
            line += [f"{cell['fused']:.1f}", f"{cell['written']:.1f}", f"{cell['fused'] / cell['written']:.1f}"]
        whole = (cells["float32", work] for work in ("forward", "forward, backward"))
        line += [f"{cell['fused'] / cell['written']:.1f}" for cell in whole]
        rows.append(line)
    header = ["images x tokens x heads", "bf16 forward: fused", "written", "ratio", "with backward: fused", "written"]
    return markdown([*header, "ratio", "fp32 forward: ratio", "with backward: ratio"], rows)


WAYS = {
    "torchvision": "torchvision",
    "pillow": "`loader.decoder=pillow`",
    "fast": "`loader.decoder=fast`",
    "fast, normalised here": "the same, normalised on this core too",
    "fast, colours elsewhere": "the same, `loader.photometric=device`",
}


def loader_ways(found: Sequence[Found]) -> str:
    kinds = list(found[0]["figures"]["ways"].values())
    rows = []
    for way, name in WAYS.items():
        line = [name]
        for kind in kinds:
            rate = kind["images_per_second_per_core"].get(way)
            over = kind["over_torchvision"].get(way)
            line += [short(1e3 / rate if rate else None), "-" if rate is None else f"{rate:.0f}"]
            line += ["-" if over is None else f"{over:.1f}"]
        rows.append(line)
    header = ["way"]
    for kind in kinds:
        header += [f"{kind['kb']:.0f} kB: ms an image", "images/s", "x torchvision"]
    return markdown(header, rows)


def loader_waits(found: Sequence[Found]) -> str:
    rows = [
        [
            f"`{one['thread']}`",
            short(one["made"]),
            short(one["taken"]),
            f"{one['of']:.0%}",
            f"{100 * one['waits']:.1f} %",
        ]
        for one in found[0]["figures"]["waits"]
    ]
    return markdown(
        ["`loader.thread`", "images/s made", "images/s taken", "of those made", "of its time it waits"], rows
    )


def loader_phases(found: Sequence[Found]) -> str:
    cases = found[0]["figures"]["cases"]
    rows = [
        [case["images"], *(ratio(value) for value in case["phases"].values()), ratio(sum(case["phases"].values()))]
        for case in cases
    ]
    return markdown(["images", *cases[0]["phases"], "all"], rows)


def loader_listing(found: Sequence[Found]) -> str:
    one = found[0]["figures"]["listing"]
    row = [f"{one['paths']:,}", ratio(one["seconds"]), f"{one['mb']:.0f}", ratio(one["scan_seconds_a_million"])]
    return markdown(["paths", "table of them, s", "MB of text", "folders read, s a million"], [row], left=0)


def embed(found: Sequence[Found]) -> str:
    rows = []
    for row in (row for one in found for row in one["figures"]["rows"]):
        ms, ours = row["ms"], row["ms"]["fast, optimized model"]
        times = [ms.get(way) for way in ("pillow, plain model", "fast, plain model", "fast, optimized model")]
        theirs = f"{ms['transformers']:.1f}" + (" (fp32)" if row["precision"] == "int8" else "")
        same = "-" if row["precision"] == "int8" else ratio(ms["transformers"] / ours)
        gains = [same, ratio(row["default_ms"] / ours), f"{row['least_cosine']['fast, optimized model']:.5f}"]
        name = "192 wide, 4 blocks" if row["model"] == "tiny" else row["model"]
        shown = ["-" if value is None else f"{value:.1f}" for value in times]
        rows.append([name, row["precision"], *shown, theirs, *gains])
    header = ["model", "precision", "Pillow, plain", "fast decoder, plain", "fast, optimized", "transformers"]
    return markdown([*header, "ratio", "over transformers in fp32", "least cosine"], rows, left=2)


PEERS = ("optimized", "plain", "transformers", "timm")


def aim(cell: str) -> str:
    """What issue D set for a cell."""
    size, side, _, dtype = cell.split()
    if side == "518":
        return {"S fp32": "1.6", "S bf16": "2.0"}.get(f"{size} {dtype}", "-")
    return {"fp32": "2.0", "bf16": "1.5"}[dtype]


def forward(found: Sequence[Found]) -> str:
    rows = []
    for row in (row for one in found for row in one["figures"]["rows"]):
        rates = [short(row["img_per_s"].get(way)) for way in PEERS]
        shares = f"{percent(row['share'])}, {percent(row['share_of_peer'])}"
        rows.append(
            [row["cell"], *rates, ratio(row["ratio"]), shares, ratio(1 / row["share_of_peer"]), aim(row["cell"])]
        )
    return markdown(["cell", *PEERS, "over the best peer", "share, the peer's", "at most", "aim"], rows)


def forward_threads(found: Sequence[Found]) -> str:
    measured = [row for one in found for row in one["figures"]["rows"]]
    ways = [way for way in PEERS if any(way in row["img_per_s"] for row in measured)]
    rows = [
        [row["cell"], *(short(row["img_per_s"].get(way)) for way in ways), ratio(row["ratio"]), aim(row["cell"])]
        for row in measured
    ]
    return markdown(["cell", *ways, "over the best peer", "aim"], rows)


def forward_memory(found: Sequence[Found]) -> str:
    measured = (row for one in found for row in one["figures"]["rows"])
    rows = [[row["cell"], *(short(row["peak_mib"][way]) for way in PEERS)] for row in measured]
    return markdown(["cell", *PEERS], rows)


def _setting(name: str) -> str:
    """A row of `cheaper.py` as it is written in Python."""
    dtype, _, merge = name.removeprefix("optimized ").partition(", merge ")
    return "plain, fp32" if name.startswith("plain") else f'`"{dtype}"{f", merge={merge}" if merge else ""}`'


def cheaper(found: Sequence[Found]) -> str:
    rows = [
        [_setting(name), f"{row['knn']:.1f}", f"{row['cosine']:.5f}", short(row["img_per_s"]), ratio(row["ratio"])]
        for name, row in found[0]["figures"]["rows"].items()
    ]
    return markdown(["`opendino.optimize(model, ...)`", "k-NN", "cosine", "images/s", "over plain fp32"], rows)


def cheaper_speed(found: Sequence[Found]) -> str:
    rows = [
        [_setting(name), short(row["img_per_s"]), ratio(row["ratio"])]
        for name, row in found[0]["figures"]["rows"].items()
    ]
    return markdown(["`opendino.optimize(model, ...)`", "images/s", "over plain fp32"], rows)


COMMANDS = {
    "opendino --help": "`opendino --help`",
    "import opendino": "`import opendino`",
    "import torch": "`import torch`",
    "opendino.create": '`import opendino; opendino.create("vits14")`',
    "opendino.optimize": "the same and `opendino.optimize`",
    "transformers": "transformers: `Dinov2Model` of the same shape",
    "timm": "timm: the same",
}


def startup(found: Sequence[Found]) -> str:
    rows = found[0]["figures"]["rows"]
    lines = [
        [name, f"{rows[key]['cpu_s']:.2f}", f"{rows[key]['wall_s']:.2f}", f"{rows[key]['peak_mib']:.0f}"]
        for key, name in COMMANDS.items()
        if key in rows
    ]
    return markdown(["command", "processor s", "wall s", "MiB"], lines)


def head_loss(found: Sequence[Found]) -> str:
    rows = []
    for row in found[0]["figures"]["rows"]:
        ways = [f"{row['seconds'][way]:.2f} s, {row['peak_mib'][way]:.0f} MiB" for way in ("plain", "chunked")]
        gains = [ratio(row["speed"]), f"{row['memory']:.1f}", f"{row['largest_gradient_difference']:.0e}"]
        rows.append([f"{row['prototypes']:,}", row["dtype"], *ways, *gains])
    header = ["prototypes", "type", "all at once", "in blocks", "faster", "smaller", "gradients apart"]
    return markdown(header, rows, left=2)


def eval_images(found: Sequence[Found]) -> str:
    keys = ("k-NN", "5 a class", "logreg", "linear")
    rows = [[one["figures"]["row"], *(f"{one['figures']['figures'][key]:.1f}" for key in keys)] for one in found]
    return markdown(["top-1, %", "k-NN", "five a class", "logistic regression", "linear"], rows)


def eval_pixels(found: Sequence[Found]) -> str:
    rows = []
    for one in found:
        now = one["figures"]["figures"]
        cells = [f"{now[f'{head} mIoU']:.1f} / {now[f'{head} aAcc']:.1f}" for head in ("linear", "knn", "ms")]
        rows.append([one["figures"]["row"], *cells])
    return markdown(["mIoU / aAcc", "linear", "voting patches", "`ms`, multi-scale and flips"], rows)


def eval_stereo(found: Sequence[Found]) -> str:
    by_row: dict[str, dict[str, Found]] = {}
    for one in (one["figures"] for one in found):
        by_row.setdefault(one["row"], {})[one["split"]] = one["figures"]
    first = next(iter(by_row.values()))
    rows, splits, constant = [], ("views", "tiles"), ["constant, the mean"]
    for split in splits:
        mean, median = (first[split][f"a constant's ({name})"] for name in ("mean", "median"))
        constant += [f"{mean:.2f}", ratio(mean / min(mean, median))]
    rows.append(constant)
    for name, parts in by_row.items():
        line = [name]
        for split in splits:
            now = parts[split]
            line += [
                f"{now['RMSE']:.2f} / {now['AbsRel']:.2f} / {now['d1']:.1f}",
                ratio(now["of the better constant's"]),
            ]
        rows.append(line)
    share = "of a constant's RMSE"
    return markdown(["RMSE / AbsRel / within a factor of 1.25", "views", share, "tiles", share], rows)


def cost(found: Sequence[Found]) -> str:
    units = {"images": "an image", "tokens": "a token", "prototypes": "a prototype", "processes": "a process"}
    names = {"tokens": "tokens of an image's views", "processes": "processes, wall time"}
    rows = []
    for row in found[0]["figures"]["rows"]:
        points = ", ".join(f"{at:,.0f}: {ratio(seconds)}" for at, seconds in row["points"])
        each_one = abs(row["each"])
        scale, unit = (1, "s") if each_one >= 0.1 else (1e3, "ms") if each_one >= 1e-4 else (1e6, "us")
        more = f"{scale * row['each']:.3g} {unit}"
        name = row["name"]
        rows.append([names.get(name, name), points, ratio(row["power"]), f"{more} {units[name]}"])
    return markdown(["grows", "points", "power of the fit", "one more costs"], rows, left=2)


def plan(found: Sequence[Found]) -> str:
    now = found[0]["figures"]
    rows = []
    for model, work in now["gflop_per_image"].items():
        lines = [row for row in now["rows"] if row["model"] == model]
        rates = [f"{float(format(row['images/s'], '.3g')):,.0f}" for row in lines]
        ideal = ", ".join(ratio(row["of ideal"]) for row in lines[1:])
        cores = f"{lines[0]['decode cores a GPU']:.2g}"
        held = ", ".join(short(lines[0].get(f"GiB {what}")) for what in ("held", "kept", "recomputed"))
        rows.append([f"{model}, {now['batches'][model]:,}", f"{work:,.0f}", *rates, ideal, cores, held])
    gpus = [f"{row['gpus']:,}" for row in now["rows"][: len(now["rows"]) // len(now["batches"])]]
    header = ["model, images a step", "GFLOP an image", f"{gpus[0]} GPUs: images/s", *gpus[1:]]
    header += [f"of ideal at {', '.join(gpus[1:])}", f"decoding cores a GPU at {gpus[0]}"]
    return markdown([*header, f"GiB a GPU at {gpus[0]}: held, kept by a pass, recomputed"], rows)


def fuzz(found: Sequence[Found]) -> str:
    rows = []
    for name, one in found[0]["figures"]["targets"].items():
        numbers = [one["inputs"], one["refused"], len(one["failures"])]
        ends = [f"{one['seconds']:.2f}", f"{one['grown']:.0f}", f"{one['files']:.0f}"]
        rows.append([name, *(f"{number:,}" for number in numbers), *ends])
    return markdown(["target", "inputs", "refused", "failures", "slowest s", "grown MiB", "files left open"], rows)


def drills(found: Sequence[Found]) -> str:
    rows = []
    for name, one in found[0]["figures"]["drills"].items():
        numbers = [one["kills"], one["starts"], one["ends"], len(one["failures"])]
        rows.append([name, *(str(number) for number in numbers), f"{one['seconds']:.1f}"])
    return markdown(["work", "kills", "starts", "runs to their end", "differing", "seconds without a kill"], rows)


def speed_figures(found: Sequence[Found]) -> dict[str, str]:
    """What the front pages say, of the commands of SPEED in their order."""
    loader, features, join, head, start = (one["figures"] for one in found)
    crops = next(iter(loader["ways"].values()))["images_per_second_per_core"]
    cell = next(row for row in features["rows"] if row["cell"] == "S 224 b8 bf16")["img_per_s"]
    last, rows = head["rows"][0]["peak_mib"], start["rows"]
    rates = {
        "crops": crops["fast"],
        "torchvision": crops.get("torchvision"),
        "features": cell["optimized"],
    }
    rates |= {"transformers": cell.get("transformers"), "timm": cell.get("timm")}
    return {name: short(value) for name, value in rates.items()} | {
        "join": f"{join['ours']:.0f}",
        "faiss": "-" if join["faiss"] is None else f"{join['faiss']:.0f}",
        "blocks": f"{last['chunked']:.0f}",
        "whole": f"{last['plain']:.0f}",
        "help": f"{rows['opendino --help']['cpu_s']:.1f}",
        "create": f"{rows['opendino.create']['cpu_s']:.1f}",
        "torch": f"{rows['import torch']['cpu_s']:.1f}",
    }


def readme(found: Sequence[Found]) -> str:
    now = speed_figures(found)
    rows = [
        [
            "published crops of a 500x375 JPEG, `fast` extra",
            f"{now['crops']} images/s in 8 bits",
            f"torchvision's recipe, {now['torchvision']} in floats",
            "`benchmarks/loader.py`",
        ],
        [
            "ViT-S/14 features at 224, bf16, `opendino.optimize`",
            f"{now['features']} images/s",
            f"transformers {now['transformers']}, timm {now['timm']}",
            "`benchmarks/forward.py`",
        ],
        [
            "self-join of 200,000 x 384, 64 neighbours",
            f"{now['join']} s",
            f"faiss (flat) {now['faiss']} s",
            "`benchmarks/curate_search.py`",
        ],
        [
            "last layer and loss, 65,536 prototypes: peak memory",
            f"{now['blocks']} MiB",
            f"all at once, {now['whole']} MiB",
            "`benchmarks/head_loss.py`",
        ],
        [
            '`opendino --help`; `create("vits14")`',
            f"{now['help']} s; {now['create']} s",
            f"importing torch alone {now['torch']} s",
            "`benchmarks/startup.py`",
        ],
    ]
    return markdown(["on one core of a CPU", "ours", "peer", "command"], rows, left=4)


def readme_ar(found: Sequence[Found]) -> str:
    """The Arabic page's rows, kept in a file of their own as they are not ASCII."""
    text = (Path(__file__).parent / "speed_ar.md").read_text(encoding="utf-8").strip()
    for name, value in speed_figures(found).items():
        text = text.replace(f"[{name}]", value)
    return text


TRAIN = (
    "student.preset=vits14 dino.prototypes=8192 train.batch_size=4 train.precision=bf16 --steps 3",
    "configs/pretrain/vit_tiny_cifar10.yaml train.batch_size=16 --steps 3",
    "configs/pretrain/vit_nano_cifar10_cpu.yaml --steps 6",
)
SPEED = (
    "loader --quick --peer PEERS",
    "forward --budget 2 --only S",
    "curate_search join rows=200000",
    "head_loss --quick",
    "startup --quick",
)
SMALL = "eval_small RUN --data DATA --table"
STEREO = "eval_stereo RUN --pictures STEREO"
KINDS = ("pixels", "untrained", "trained")
ROWS = ", `untrained`, `trained`"


def _small(table: str, make: Callable[[Sequence[Found]], str]) -> Table:
    commands = tuple(f"{SMALL} {table} --row {kind}" for kind in KINDS)
    return Table(commands, make, f"`python benchmarks/{commands[0].replace('small', 'small.py')}`{ROWS}")


TABLES = {
    "train_step": Table(
        tuple(f"train_step {words}" for words in TRAIN), train_step, "`python benchmarks/train_step.py` and these words"
    ),
    "step_cpu": Table(
        (
            "step_cpu --batch 2 --rounds 5 --peer PEERS",
            "step_cpu --batch 8 --rounds 3 --together --only bf16 --peer PEERS",
        ),
        step_cpu,
    ),
    "step_ways": Table(("step_cpu --batch 2 --rounds 5 --peer PEERS",), step_ways),
    "attention": Table(("attention --repeats 5",), attention),
    "loader_ways": Table(("loader --quick --peer PEERS",), loader_ways),
    "loader_waits": Table(("loader --quick --peer PEERS",), loader_waits),
    "loader_phases": Table(("loader",), loader_phases),
    "loader_listing": Table(("loader",), loader_listing),
    "embed": Table(("embed", "embed --models B/14 --precisions int8 bf16 --images 8 --rounds 1"), embed),
    "forward": Table(("forward --budget 2 --only S", "forward --budget 2 --only B"), forward),
    "forward_threads": Table(
        ("forward --threads 2 --budget 2 --only S", "forward --threads 2 --budget 2 --only B"), forward_threads
    ),
    "forward_memory": Table(("forward --memory --only S", "forward --memory --only B"), forward_memory),
    "cheaper": Table(
        ("cheaper RUN DATA/cifar10-train.parquet DATA/cifar10-test.parquet --merge 0.07 0.13 0.19 0.25",), cheaper
    ),
    "cheaper_speed": Table(("cheaper --quick --merge 0.04 0.08",), cheaper_speed),
    "startup": Table(("startup --quick",), startup),
    "head_loss": Table(("head_loss --quick",), head_loss),
    "eval_cifar10": _small("cifar10", eval_images),
    "eval_tinyimagenet100": _small("tinyimagenet100", eval_images),
    "eval_camvid": _small("camvid", eval_pixels),
    "eval_stereo": Table(
        tuple(f"{STEREO} --row {row} --split {split}" for row in KINDS[1:] for split in ("views", "tiles")),
        eval_stereo,
        "`python benchmarks/eval_stereo.py RUN --pictures STEREO --row untrained --split views`, `trained`, `tiles`",
    ),
    "cost": Table(("cost",), cost),
    "plan": Table(("plan",), plan),
    "fuzz": Table(("fuzz",), fuzz),
    "drills": Table(("drills --ranks 4",), drills),
    "readme": Table(SPEED, readme, "-"),
    "readme_ar": Table(SPEED, readme_ar, "rtl"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    refresh_all(ROOT)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What it costs to start: processor seconds and peak memory of small commands, each in a process of its own, in turn.

    python benchmarks/startup.py --quick

The last line is a JSON object: seconds of `opendino --help`, of importing the package and building a ViT-S/14 over
those of importing torch alone, and all rows. A peer that does not import is said, and left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PEER = (
    "from transformers import Dinov2Config, Dinov2Model; "
    "Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518))"
)
COMMANDS = {
    "opendino --help": ["-m", "opendino", "--help"],
    "import opendino": ["-c", "import opendino"],
    "import torch": ["-c", "import torch"],
    "opendino.create": ["-c", "import opendino; opendino.create('vits14')"],
    "opendino.optimize": ["-c", "import opendino; opendino.optimize(opendino.create('vits14'))"],
    "transformers": ["-c", PEER],
    "timm": ["-c", "import timm; timm.create_model('vit_small_patch14_dinov2')"],
}
PEERS = ("transformers", "timm")


def cost(words: list[str]) -> tuple[float, float, float] | None:
    """Processor seconds, wall seconds and peak MiB of one command; None where it fails."""
    begun = time.perf_counter()
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    return None if child.returncode else (used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds in place of seven")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/startup.json")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(1 + (3 if arguments.quick else 7)):
        for name, words in COMMANDS.items():
            one = cost(words)
            if one is not None:
                found[name].append(one)
    rows = {}
    print(f"{'command':20} {'processor s':>11} {'wall s':>7} {'MiB':>5}")
    for name, costs in found.items():
        if costs:
            # the first round reads files that were not in memory
            cpu, wall, memory = (statistics.median(column) for column in zip(*costs[1:], strict=True))
            rows[name] = {"cpu_s": round(cpu, 3), "wall_s": round(wall, 3), "peak_mib": round(memory)}
            print(f"{name:20} {cpu:11.2f} {wall:7.2f} {memory:5.0f}")
        elif name in PEERS:
            print(f"{name:20} does not import here, so nothing is compared with it")
        else:
            raise SystemExit(f"startup: {name} fails; python {' '.join(COMMANDS[name])} shows why")
    summary = {
        "help_cpu_s": rows["opendino --help"]["cpu_s"],
        "create_over_torch": round(rows["opendino.create"]["cpu_s"] / rows["import torch"]["cpu_s"], 3),
    }
    if arguments.json:
        RESULTS.mkdir(exist_ok=True)
        record = {"command": "python benchmarks/startup.py", "load": os.getloadavg()[0], "rows": rows} | summary
        (RESULTS / "startup.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary | {"rows": rows}))


if __name__ == "__main__":
    main()

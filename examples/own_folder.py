# SPDX-License-Identifier: Apache-2.0
"""From a folder of images to a backbone, its k-NN and its PCA picture, in Python instead of the shell.

    python examples/own_folder.py path/to/images runs/mine train.iterations=2000

Words after the two folders are settings of `opendino pretrain`; what is left open fits the data and the machine. The
same call continues an interrupted run.
"""

import sys
from pathlib import Path

import opendino
from opendino.train.plan import plan
from opendino.train.pretrain import Outcome, pretrain
from opendino.view import pca


def main(data: str, output_dir: str, *words: str) -> Outcome:
    planned = plan(None, [f"data={data}", f"output_dir={output_dir}", *words])
    for key, choice in planned.choices.items():
        print(f"{key} = {choice.value}: {choice.reason}")
    outcome = pretrain(planned.config, {key: choice.value for key, choice in planned.choices.items()}, planned.dataset)
    pca.run(opendino.load(output_dir), [data], pca.PcaConfig(out=str(Path(output_dir) / "pca.png"), images=6))
    return outcome


if __name__ == "__main__":
    done = main(*sys.argv[1:])
    print(f"{done.images_seen} images seen; {done.figures}; {done.output_dir}/pca.png")

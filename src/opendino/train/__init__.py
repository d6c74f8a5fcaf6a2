# SPDX-License-Identifier: Apache-2.0
"""Training, the only place with `.backward()`: read `loop.py`, then `pretrain.py`, which puts a run together.

| file          | what it knows                                                       |
|---------------|---------------------------------------------------------------------|
| loop          | one step after the other: schedules, backward, clip, step, EMA, log |
| pretrain      | the settings of a run, and how its parts are put together           |
| settings      | what fits the data and the machine when nothing is said             |
| state         | what a checkpoint holds, out of the run and back into it            |
| run_folder    | config.yaml and run.json: whose folder this is                      |
| probe         | k-NN and health of the teacher while it trains                      |
| metrics       | metrics.jsonl and TensorBoard                                       |
| progress      | the bar, or plain lines where there is no terminal                  |
"""

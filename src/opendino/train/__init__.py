# SPDX-License-Identifier: Apache-2.0
"""Training, the only place with `.backward()`: read `loop.py`, then `pretrain.py`, which puts a run together.

| file          | what it knows                                                       |
|---------------|---------------------------------------------------------------------|
| loop          | one step after the other: schedules, backward, clip, step, EMA, log |
| figures       | what a step says of itself, read without keeping the device waiting |
| config        | every setting of a run, and what of them does not go together       |
| settings      | what fits the data and the machine when nothing is said             |
| facts         | what is found out about the images and the machine before that      |
| plan          | from a recipe and words to the settings of a run                    |
| parts         | from settings to networks, optimizer and schedules                  |
| pretrain      | how the parts of a run are put together                             |
| threads       | how many CPU threads a run computes with                            |
| ways          | what it tries on its machine before its first step, and keeps to    |
| upkeep        | what happens between the steps: records, looks, checkpoints         |
| background    | writing a checkpoint behind the steps that follow                    |
| state         | what a checkpoint holds, out of the run and back into it            |
| run_folder    | config.yaml and run.json: whose folder this is                      |
| probe         | k-NN, a linear classifier and health of the teacher, now and then   |
| glance        | a few images without labels, each few steps: what the watch sees    |
| metrics       | metrics.jsonl, and the trackers beside it                             |
| trackers      | TensorBoard, Weights & Biases, MLflow                               |
| progress      | the bar, or plain lines where there is no terminal                  |
| distill       | a distillation: its settings, and what follows from its teacher     |
| guide_cache   | what a frozen teacher said of crops that come again, on the disk    |
| official_config | training configurations of the official code, as recipes          |
| teacher       | opens the frozen teacher of a distillation                          |
| adapt         | training on from weights, and how far the features moved            |
| adapt_config  | its settings: the start, new heads, LoRA                            |
| adapt_plan    | what of them follows from the start                                 |
| start         | a run with its heads, or weights without: opened                    |
| demo          | the demonstration: pretrain, measure, compare                       |
| demo_report   | the page that it writes                                             |
"""

# SPDX-License-Identifier: Apache-2.0
"""How parameters move: schedules, groups of parameters, the optimizer, clipping and the teacher's moving average.

Read `schedules.py` first. One iteration uses them in this order: schedules -> `param_groups.set_schedule` ->
backward (in `train/`) -> `clipping.clip_gradients` -> optimizer step -> `ema.update_ema`.
"""

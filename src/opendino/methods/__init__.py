# SPDX-License-Identifier: Apache-2.0
"""Methods: student, teacher and losses put together into one step; read `dinov2.py` first.

A method turns a batch into a `StepOutput`. It never calls `.backward()`: that is the loop's, in `train/`.
"""

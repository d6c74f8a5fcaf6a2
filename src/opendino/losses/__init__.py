# SPDX-License-Identifier: Apache-2.0
"""The terms of the objective as pure functions, float32 inside whatever comes in; read `dino.py` first.

One file is one term (`dino`, `ibot`, `koleo`) or one way to make the teacher's targets (`centering`,
`sinkhorn`). How they are put together is `methods/dinov2.py`.
"""

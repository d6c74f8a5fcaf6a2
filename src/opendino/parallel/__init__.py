# SPDX-License-Identifier: Apache-2.0
"""Many devices, compilation and less memory, wrapped around a method from outside; read `layout.py` first.

Nothing in `layers/`, `models/` or `methods/` knows of it; what a method computes stays the same but for rounding.
"""

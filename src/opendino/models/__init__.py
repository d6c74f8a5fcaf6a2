# SPDX-License-Identifier: Apache-2.0
"""The backbone: `presets.py` names the known shapes, `vision_transformer.py` is the model.

`outputs.py` says what it returns, `input_spec.py` what images it expects. The layers: `opendino.layers`.
"""

# SPDX-License-Identifier: Apache-2.0
"""The backbone. Its layers are one floor below, in `opendino.layers`.

| file               | what it is                                                        |
|--------------------|-------------------------------------------------------------------|
| vision_transformer | the model, its start values, and loading of chunked weights       |
| presets            | known shapes by name; `create`, and the settings of a recipe      |
| outputs            | what the model returns                                            |
| input_spec         | what images a model expects                                       |
| positions          | whose rule resizes the position table: official, hf or timm       |
"""

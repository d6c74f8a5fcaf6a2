# SPDX-License-Identifier: Apache-2.0
"""The same backbones for inference alone, faster, with the same numbers; read `optimize.py` first.

| file      | what it is                                                                |
|-----------|---------------------------------------------------------------------------|
| optimize  | `opendino.optimize`: a model to its fast copy                             |
| block     | a transformer block with folded weights that goes through few images at a time |
| attention | attention by whichever way is the faster one                              |
| merging   | patches that look alike go on as one: token merging, on request             |
| tables    | position tables, each size resized once                                   |
"""

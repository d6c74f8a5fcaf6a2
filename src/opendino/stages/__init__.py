# SPDX-License-Identifier: Apache-2.0
"""Work in parts that survives interruption: what embedding and curation have in common.

| file         | what it is                                                                |
|--------------|---------------------------------------------------------------------------|
| `folder.py`  | the folder of one stage: its plan, finished parts and provenance          |
| `engines.py` | who makes the parts: processes, the ranks of torchrun, or a Ray cluster   |
"""

# SPDX-License-Identifier: Apache-2.0
"""Which vectors are near to which: what curation and search have in common.

| file             | what it is                                                           |
|------------------|----------------------------------------------------------------------|
| `matrix.py`      | rows of features that are read block by block                        |
| `exact.py`       | the nearest rows, by blocks of products; a set joined with itself    |
| `best.py`        | the best of each row, kept while blocks of scores pass by            |
| `approximate.py` | the same by faiss, above a million rows on a CPU; and either of both |
| `components.py`  | which rows hang together by edges                                    |

Start with `exact.py`.
"""

# SPDX-License-Identifier: Apache-2.0
"""From a heap of images to a curated training manifest, restartable at any point; one stage = one file.

| stage           | file               | what it leaves                                             |
|-----------------|--------------------|------------------------------------------------------------|
| index           | `index.py`         | every image, its size and hash, and why some are set aside |
| embed           | `embed.py`         | features in shards                                         |
| dedup           | `dedup.py`         | one of each group of near copies                           |
| decontaminate   | `decontaminate.py` | the pool without what is in evaluation sets                |
| retrieve        | `retrieve.py`      | images like those of chosen sets                           |
| cluster         | `cluster.py`       | a tree of clusters                                         |
| prune           | `prune.py`         | clusters without what says nearly the same (SemDeDup)      |
| balance         | `balance.py`       | a sample that gives every concept its share                |
| manifest        | `mix.py`           | what `opendino pretrain data=` takes                       |
| report          | `report.py`        | one HTML page of all of it                                 |

Start with `pipeline.py`, which runs them in order; `stages` and `neighbours` are what they share.
"""

# SPDX-License-Identifier: Apache-2.0
"""The parts a backbone and a head are made of; one file, one part.

| file          | what it is                                                      | official keys it owns            |
|---------------|-----------------------------------------------------------------|----------------------------------|
| patch_embed   | image -> patch tokens                                           | `patch_embed.proj`               |
| pos_embed     | the position table at another grid                              | (none: resizes `pos_embed`)      |
| block         | norm, attention, norm, feed-forward, each added to the stream   | `blocks.{i}`                     |
| attention     | multi-head self-attention                                       | `attn.qkv`, `attn.proj`          |
| mlp           | feed-forward with GELU                                          | `mlp.fc1`, `mlp.fc2`             |
| swiglu        | feed-forward with a gate                                        | `mlp.w12`, `mlp.w3`              |
| layer_scale   | one learned factor a channel                                    | `ls1.gamma`, `ls2.gamma`         |
| drop_path     | stochastic depth on a subset of the batch                       | (none)                           |
| packing       | crops of several sizes as one token sequence                    | (none)                           |
| dino_head     | backbone output -> prototype logits                             | `mlp.{0,2,4}`, `last_layer`      |
"""

# SPDX-License-Identifier: Apache-2.0
import torch

from opendino.layers.patch_embed import PatchEmbed


def test_each_patch_is_a_linear_map_and_rows_come_first():
    embed = PatchEmbed(patch_size=2, in_chans=5, embed_dim=3)
    x = torch.randn(2, 5, 4, 6)
    tokens = embed(x)
    weight = embed.proj.weight.reshape(3, -1)
    for n, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(2, -1)
        torch.testing.assert_close(tokens[:, n], patch @ weight.T + embed.proj.bias)
    assert tokens.shape[1] == 6

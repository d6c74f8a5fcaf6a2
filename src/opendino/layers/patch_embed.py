# SPDX-License-Identifier: Apache-2.0
"""Image to patch tokens; read `pos_embed.py` next."""

from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """A convolution whose kernel and stride are the patch; tokens come row by row.

    Args:
        patch_size: side of the square patch, in pixels.
        in_chans: channels C of the image.
        embed_dim: width D of the tokens.

    Source: official `layers/patch_embed.py`; key `proj`.
    Differs: sizes are checked once, by the model, with the sizes that would do.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """Embed each patch of images whose sides are multiples of the patch."""
        return self.proj(x).flatten(2).transpose(1, 2)

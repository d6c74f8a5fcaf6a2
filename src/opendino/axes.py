# SPDX-License-Identifier: Apache-2.0
"""The legend of tensor axes, used in every shape annotation of this package.

| axis | meaning                                  | axis | meaning                              |
|------|------------------------------------------|------|--------------------------------------|
| B    | images in a batch                        | N    | patches of one image, N = h * w      |
| G    | global crops of one image                | R    | register tokens                      |
| L    | local crops of one image                 | T    | tokens, T = 1 + R + N                |
| C    | channels                                 | D    | embedding dimension                  |
| H W  | pixels, rows and columns                 | A    | attention heads                      |
| h w  | patch grid, h = H / patch, w = W / patch | K    | prototypes                           |
|      |                                          | M    | masked patches of a whole batch      |

Crops are crop-major: rows 0..B-1 are crop 1 of every image, rows B..2B-1 crop 2, and so on. Where two axes
are folded into one, the annotation writes them together: "GB" rows are crop-major.
"""

from jaxtyping import Bool, Float
from torch import Tensor

Images = Float[Tensor, "B C H W"]
"""Normalised images, float32 or the model's dtype."""

PatchMasks = Bool[Tensor, "B N"]
"""True where a patch is masked, rows and columns of the grid in row-major order."""

# SPDX-License-Identifier: Apache-2.0
"""What a backbone returns; made by `vision_transformer.py`."""

from typing import TypedDict

from torch import Tensor


class FeatureDict(TypedDict):
    """Features of one batch, under the official names.

    Keys:
        x_norm_clstoken: [B, D], CLS after the final norm.
        x_norm_regtokens: [B, R, D], registers after the final norm; R may be 0.
        x_norm_patchtokens: [B, N, D], patches after the final norm, row by row.
        x_prenorm: [B, 1 + R + N, D], all tokens before the final norm.
        masks: the [B, N] masks passed in, or None.

    Source: official `models/vision_transformer.py`, forward_features.
    """

    x_norm_clstoken: Tensor
    x_norm_regtokens: Tensor
    x_norm_patchtokens: Tensor
    x_prenorm: Tensor
    masks: Tensor | None

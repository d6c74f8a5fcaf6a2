# SPDX-License-Identifier: Apache-2.0
"""Features of any images, kept on the disk; `opendino.embed.embed` makes the folder, `read` opens it.

Start with `folder.py` (what is written, and how it is continued), then `features.py` (images to features).
"""

from opendino.embed.features import Embedder, FeatureSettings, open_embedder
from opendino.embed.folder import EmbedConfig, Embedded, embed
from opendino.embed.reading import Summary, matrix, read, summary

__all__ = [
    "EmbedConfig",
    "Embedded",
    "Embedder",
    "FeatureSettings",
    "Summary",
    "embed",
    "matrix",
    "open_embedder",
    "read",
    "summary",
]

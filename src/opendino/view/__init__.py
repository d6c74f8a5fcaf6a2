# SPDX-License-Identifier: Apache-2.0
"""Looking at features: pictures (`pca.py`) and pages that hold pictures, curves and tables (`report.py`)."""

from types import MappingProxyType

PICTURES = MappingProxyType(
    {
        "pca": ("opendino.view.pca", "PcaConfig", "principal components of the patches as colours"),
        "attention": ("opendino.view.attention", "AttentionConfig", "where the class token and the registers look"),
        "match": ("opendino.view.match", "MatchConfig", "the same parts in two images, joined by lines"),
        "similar": ("opendino.view.similar", "SimilarConfig", "everything that is like one spot of an image"),
        "embedding": ("opendino.view.embedding", "EmbeddingConfig", "a map of a data set, thumbnails in the plane"),
    }
)
"""Picture -> (module, config class, what it shows); modules are imported when asked for."""

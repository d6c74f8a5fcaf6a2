# SPDX-License-Identifier: Apache-2.0
"""One published protocol = one file: what a frozen backbone's features are worth.

Every protocol file holds its settings (`XConfig`), pure functions on feature tensors, and
`run(backbone, config, *, out) -> Results`. The command is `opendino eval PROTOCOL MODEL key=value ...`.
Start with `knn.py`; `_features.py` is the pass over the images that the protocols share.
"""

from types import MappingProxyType

PROTOCOLS = MappingProxyType(
    {
        "knn": ("opendino.eval.knn", "KnnConfig", "weighted nearest neighbours, the quickest look at features"),
        "linear": (
            "opendino.eval.linear",
            "LinearConfig",
            "a grid of linear classifiers on one pass of the backbone, the best reported",
        ),
        "logreg": (
            "opendino.eval.logreg",
            "LogregConfig",
            "L2 logistic regression, strength chosen on held-out images",
        ),
        "segment": (
            "opendino.eval.segment",
            "SegmentConfig",
            "semantic segmentation on frozen patches: linear, multi-scale, or nearest patches",
        ),
        "depth": (
            "opendino.eval.depth",
            "DepthConfig",
            "monocular depth on frozen features: linear heads on one or four layers, DPT",
        ),
        "finetune": (
            "opendino.eval.finetune",
            "FinetuneConfig",
            "a classifier and the backbone under it, all of it, its last blocks, or by LoRA; writes a model",
        ),
        "retrieval": (
            "opendino.eval.retrieval",
            "RetrievalConfig",
            "ranking by cosine: mAP of easy, medium and hard, recall, GAP",
        ),
        "robust": ("opendino.eval.robust", "RobustConfig", "a linear classifier on corrupted and shifted images"),
        "correspond": ("opendino.eval.correspond", "CorrespondConfig", "points of one image found in another, PCK"),
        "health": ("opendino.eval.health", "HealthConfig", "rank, spread and norms of the features, without labels"),
        "drift": (
            "opendino.eval.drift",
            "DriftConfig",
            "how far features have moved from another model's, without labels",
        ),
    }
)
"""Protocol -> (module, config class, what it says); modules are imported when asked for."""

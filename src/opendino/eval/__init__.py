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
        "logreg": (
            "opendino.eval.logreg",
            "LogregConfig",
            "L2 logistic regression, strength chosen on held-out images",
        ),
        "health": ("opendino.eval.health", "HealthConfig", "rank, spread and norms of the features, without labels"),
    }
)
"""Protocol -> (module, config class, what it says); modules are imported when asked for."""

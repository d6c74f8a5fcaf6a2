# SPDX-License-Identifier: Apache-2.0
"""A linear probe in scikit-learn: python examples/sklearn_probe.py runs/mine data/train data/val

`DinoFeatures` is a scikit-learn transformer from images (paths or Pillow images) to features, for any pipeline.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from opendino.data.datasets import open_dataset
from opendino.data.decode import decode
from opendino.embed import FeatureSettings, open_embedder


class DinoFeatures(TransformerMixin, BaseEstimator):
    """Images to one vector each; nothing is fitted."""

    def __init__(self, model: str, feature: str = "cls", size: int | None = None, batch_size: int = 32) -> None:
        self.model, self.feature, self.size, self.batch_size = model, feature, size, batch_size

    def fit(self, X, y=None):  # noqa: ARG002  scikit-learn's face
        return self

    def transform(self, X) -> np.ndarray:
        embedder = open_embedder(self.model, FeatureSettings(features=(self.feature,), size=self.size))
        channels, found = embedder.backbone.in_chans, []
        for start in range(0, len(X), self.batch_size):
            batch = X[start : start + self.batch_size]
            pictures = [decode(Path(one), channels) if isinstance(one, str | Path) else one for one in batch]
            found += [one[self.feature].numpy() for one in embedder.of(pictures)]
        return np.stack(found)

    def __sklearn_is_fitted__(self) -> bool:
        return True


def main(model: str, train: str, val: str) -> float:
    parts = [open_dataset(source) for source in (train, val)]
    images = [[part.image(row) for row in range(len(part))] for part in parts]
    probe = make_pipeline(DinoFeatures(model), StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(images[0], parts[0].targets)
    return probe.score(images[1], parts[1].targets)


if __name__ == "__main__":
    print(f"accuracy {main(*sys.argv[1:4]):.1%}")

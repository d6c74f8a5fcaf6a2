# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from opendino.curate._embedders import EmbedConfig, open_embedder, stack
from opendino.errors import ConfigError


def pictures(n, seed=0):
    """Smooth random pictures, as different from each other as photographs are."""
    rng = np.random.default_rng(seed)
    return [
        Image.fromarray(rng.integers(0, 255, (6, 7, 3), np.uint8)).resize((96, 80), Image.Resampling.BICUBIC)
        for _ in range(n)
    ]


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b)


def test_thumbnails_of_copies_agree_and_others_do_not():
    embedder, originals = open_embedder(EmbedConfig("thumbnail")), pictures(12)
    features = stack(embedder, originals)
    for change in (ImageOps.mirror, ImageOps.grayscale, lambda image: image.resize((40, 50), Image.Resampling.BICUBIC)):
        assert cosine(features, stack(embedder, [change(image) for image in originals])).min() > 0.95
    unit = torch.nn.functional.normalize(features)
    assert (unit @ unit.T - torch.eye(12)).max() < 0.8


def test_a_scripted_network_is_asked_for(tmp_path):
    path = tmp_path / "net.pt"

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=[2, 3])

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Mean()).save(str(path))
    name = f"torchscript:{path}"
    with pytest.raises(ConfigError, match="run_code=true"):
        open_embedder(EmbedConfig(name))
    found = stack(open_embedder(EmbedConfig(name, size=16, run_code=True, device="cpu")), pictures(2))
    assert found.shape == (2, 3)
    with pytest.raises(ConfigError, match="cannot be opened as TorchScript"):
        open_embedder(EmbedConfig(f"torchscript:{tmp_path}/none.pt", run_code=True))


def test_no_model():
    with pytest.raises(ConfigError, match="names nothing"):
        open_embedder(EmbedConfig())
    with pytest.raises(ConfigError, match="1 or more"):
        EmbedConfig(batch_size=0)

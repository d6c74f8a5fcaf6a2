# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from opendino.curate._embedders import EmbedConfig, _cosines, _without_mirror, open_embedder, stack
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
    cut = stack(embedder, [image.crop((4, 4, 92, 76)) for image in originals])
    assert cosine(features, cut).min() > 0.8
    unit = torch.nn.functional.normalize(features)
    assert (unit @ unit.T - torch.eye(12)).max() < 0.6


def test_a_mirror_and_the_brightness_change_nothing():
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    features = _without_mirror(picture)
    torch.testing.assert_close(_without_mirror(picture.flip(2)), features, atol=1e-5, rtol=0)
    torch.testing.assert_close(_without_mirror(picture + 20), features, atol=2e-2, rtol=0)
    torch.testing.assert_close(_without_mirror(3 * picture), features, atol=1e-5, rtol=0)
    # Upside down it is another picture.
    assert cosine(_without_mirror(picture.flip(1)), features).max() < 0.9


def test_cosines_of_a_line_without_margins():
    pixels, whole = torch.arange(32), _cosines(3, 0.0)
    torch.testing.assert_close(whole, torch.cos(torch.outer(torch.arange(3.0), pixels + 0.5) * torch.pi / 32) / 32)
    torch.testing.assert_close(whole @ whole.T * 32, torch.diag(torch.tensor([1.0, 0.5, 0.5])), atol=1e-6, rtol=0)
    inner = _cosines(3, 0.25)
    assert (inner[:, :8] == 0).all()
    assert (inner[:, 24:] == 0).all()
    torch.testing.assert_close(inner.sum(dim=1), torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)


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

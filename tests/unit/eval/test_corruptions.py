# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from opendino.errors import ConfigError
from opendino.eval import _corruptions as co


def photo(side=64):
    """A smooth picture with edges: a gradient, discs and a grid."""
    y, x = np.mgrid[:side, :side] / side
    pixels = np.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.5 + 0 * x], -1)
    pixels[np.hypot(x - 0.4, y - 0.5) < 0.2] = (0.9, 0.2, 0.1)
    pixels[::8] *= 0.7
    return Image.fromarray((pixels * 255).astype(np.uint8))


@pytest.mark.parametrize("kind", list(co.KINDS))
def test_each_kind_is_repeatable_and_hurts_more_when_severe(kind):
    image = photo()
    exact = np.asarray(image, np.float64)
    damage = []
    for severity in (1, 5):
        out = co.corrupt(image, kind, severity, seed=0)
        assert out.size == image.size
        assert out.tobytes() == co.corrupt(image, kind, severity, seed=0).tobytes()
        damage.append(np.abs(np.asarray(out, np.float64) - exact).mean())
    assert damage[0] > 0.5
    if kind != "elastic_transform":  # its severities change the kind of bending
        assert damage[1] > damage[0]


def test_numbers_of_the_simple_kinds():
    grey, rng = np.full((64, 64, 3), 0.5), np.random.default_rng(0)
    assert co.gaussian_noise(grey, 2, rng).std() == pytest.approx(0.18, rel=0.03)
    assert co.shot_noise(grey, 0, rng).std() == pytest.approx(np.sqrt(0.5 / 60), rel=0.03)
    assert (co.impulse_noise(grey, 4, rng) != 0.5).mean() == pytest.approx(0.27, abs=0.02)
    assert co.brightness(grey, 1, rng).mean() == pytest.approx(0.7)
    ramp = np.linspace(0, 1, 64)[None, :, None] * np.ones((64, 1, 3))
    np.testing.assert_allclose(co.contrast(ramp, 3, rng) - 0.5, 0.1 * (ramp - 0.5), atol=1e-12)
    for blur in (co.defocus_blur, co.motion_blur, co.zoom_blur, co.glass_blur):
        np.testing.assert_allclose(blur(grey, 2, rng), grey, atol=1e-9)  # flat stays flat
    field = co.fractal((32, 48), 2.0, rng)
    assert (field.min(), field.max()) == (0, 1)
    assert np.abs(np.diff(field, axis=0)).mean() < 0.3 * field.std() * 2


def test_names_fit_the_published_errors():
    assert list(co.KINDS) == list(co.ALEXNET_ERROR)
    for kind, severity in (("rain", 1), ("fog", 0), ("fog", 6)):
        with pytest.raises(ConfigError, match="choose one of gaussian_noise"):
            co.corrupt(photo(), kind, severity, 0)

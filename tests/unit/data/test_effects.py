# SPDX-License-Identifier: Apache-2.0
"""Each operation on a batch against Pillow's on single images, then whole views; differences in 8-bit levels."""

from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.data import photometric
from opendino.data.augment import CropsConfig, Look, MultiCrop, show
from opendino.data.collate import collate
from opendino.data.crops import Box
from opendino.data.effects import ChunkedEffects, Effects, blend, blur_rows, luma, turn_hue
from opendino.data.masking import BatchMasks
from opendino.data.samplers import keyed_rng

SIDE = 40
PLAIN = Look(SIDE, Box(0, 0, SIDE, SIDE), False, (), (1.0, 1.0, 1.0, 0.0), False, 0.0, False)
LOOKS = {
    "nothing": PLAIN,
    "flip": PLAIN._replace(flip=True),
    "brightness": PLAIN._replace(order=(0,), factors=(1.37, 1.0, 1.0, 0.0)),
    "contrast": PLAIN._replace(order=(1,), factors=(1.0, 0.6, 1.0, 0.0)),
    "saturation": PLAIN._replace(order=(2,), factors=(1.0, 1.0, 1.2, 0.0)),
    "hue": PLAIN._replace(order=(3,), factors=(1.0, 1.0, 1.0, 24 / 255)),
    "grey": PLAIN._replace(gray=True),
    "blur": PLAIN._replace(sigma=1.3),
    "slight blur": PLAIN._replace(sigma=0.4),
    "solarize": PLAIN._replace(solarize=True),
}
WORST = {"nothing": 1e-3, "flip": 1e-3, "solarize": 1e-3, "hue": 13.0}
MEAN = {"hue": 1.3}


@pytest.fixture
def pictures(oracle):
    return [oracle.picture("RGB", SIDE, 5 * SIDE).crop((x, 0, x + SIDE, SIDE)) for x in range(0, 160, 16)]


def planes(image):
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def stacked(images):
    return torch.from_numpy(np.stack([planes(image) for image in images]))


def test_each_operation_is_pillows_but_for_rounding(pictures):
    """All in one batch, so that a row that took another's draw would show."""
    found = Effects.of(list(LOOKS.values()))(stacked(pictures)).numpy() * 255
    for row, (name, look) in enumerate(LOOKS.items()):
        away = np.abs(found[row] - show(pictures[row], look))
        assert away.max() <= WORST.get(name, 1.7), name
        assert away.mean() <= MEAN.get(name, 0.6), name


def test_grey_images_have_no_colour_to_change(pictures):
    greys = [picture.convert("L") for picture in pictures]
    found = Effects.of(list(LOOKS.values()))(stacked(greys)).numpy() * 255
    for row, (name, look) in enumerate(LOOKS.items()):
        assert np.abs(found[row] - show(greys[row], look)).max() <= 1.7, name


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_float_images_get_the_arrays_formulas(channels):
    rng = np.random.default_rng(0)
    pixels = rng.random((24, SIDE, SIDE, channels)).astype(np.float32)
    orders = list(permutations(range(4)))
    looks = [
        PLAIN._replace(
            order=order, factors=(1.2, 0.7, 1.1, -0.08), sigma=0.9 * (i % 2), flip=i % 3 == 0, gray=i % 5 == 0
        )
        for i, order in enumerate(orders)
    ]
    found = Effects.of(looks)(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
    for row, look in enumerate(looks):
        np.testing.assert_allclose(found[row], show(pixels[row], look), atol=2e-5)


def test_the_order_of_the_jitter_is_each_rows_own(oracle):
    """Brightness x 1.4 clips a light image before or after its contrast is halved."""
    light = Image.fromarray(np.tile(np.linspace(100, 250, SIDE).astype(np.uint8), (SIDE, 1))).convert("RGB")
    orders = list(permutations(range(4)))
    looks = [PLAIN._replace(order=order, factors=(1.4, 0.5, 1.0, 0.0)) for order in orders]
    found = Effects.of(looks)(stacked([light] * len(orders)))
    brightness_first = torch.tensor([order.index(0) < order.index(1) for order in orders])
    assert found[brightness_first].std(dim=0).max() < 1e-6
    assert found[~brightness_first].std(dim=0).max() < 1e-6
    assert (found[brightness_first][0] - found[~brightness_first][0]).abs().max() > 0.05


def test_blend_by_hand():
    """Two pixels of one channel, 0.2 and 0.6, mean 0.4: darker by half; contrast doubled, cut at 0; saturation."""
    pixels = torch.tensor([0.2, 0.6]).view(1, 1, 1, 2).repeat(3, 1, 1, 1)
    bases = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = blend(pixels, torch.tensor([0.5, 3.0, 3.0]), bases)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([[0.1, 0.3], [0.0, 1.0], [0.2, 0.6]]))


def test_a_third_of_the_circle_exchanges_the_colours():
    pixels = torch.rand(2, 3, 5, 6)
    turned = turn_hue(pixels, torch.tensor([1 / 3, -1 / 3]))
    torch.testing.assert_close(turned[0], pixels[0].roll(1, dims=0), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned[1], pixels[1].roll(-1, dims=0), atol=1e-5, rtol=0)


def test_luma_weighs_green_most():
    assert luma(torch.eye(3)[:, :, None, None]).flatten().tolist() == pytest.approx([0.2989, 0.587, 0.114])


def test_each_row_is_blurred_by_its_own_kernel():
    pixels, sigmas = torch.rand(3, 2, 70, 70), (0.3, 1.0, 2.0)
    kernels = torch.from_numpy(np.stack([photometric.gaussian_kernel(sigma) for sigma in sigmas]))
    found = blur_rows(pixels, kernels)
    for row, sigma in enumerate(sigmas):
        np.testing.assert_allclose(found[row], photometric.blur(pixels[row].numpy(), sigma), atol=1e-5)


def test_chunks_are_the_whole(pictures, monkeypatch):
    looks = list(LOOKS.values())
    whole = Effects.of(looks)(stacked(pictures))
    monkeypatch.setattr("opendino.data.effects.CHUNK", 3)
    chunked = ChunkedEffects.of(looks)
    assert len(chunked.chunks) == 4
    torch.testing.assert_close(chunked(stacked(pictures)), whole)


def test_a_batch_finished_on_the_device_is_that_of_the_workers(oracle):
    """The same draws cut by the worker and coloured by the device: each view, and the law of all of them."""
    config = CropsConfig(global_size=48, local_size=24, local_number=3)
    images = [oracle.picture("RGB", 100 + 9 * i, 150).resize((80, 70)) for i in range(24)]
    masks = BatchMasks(torch.zeros(48, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 0)
    finished = []
    for bare in (False, True):
        crops = MultiCrop(config, bare=bare)
        views = [crops(image, keyed_rng(0, "crops", i)) for i, image in enumerate(images)]
        batch = collate(views, masks, list(range(24)))
        assert (batch.global_effects is not None) == bare
        finished.append(batch.to("cpu").finish((0.0,) * 3, (1 / 255,) * 3))
    for name in ("global_crops", "local_crops"):
        one, other = (getattr(batch, name) for batch in finished)
        away = (one - other).abs().mean(dim=(1, 2, 3))
        assert away.mean() < 1.5
        assert away.max() < 6
        for law in (lambda x: x.mean(dim=(2, 3)), lambda x: x.std(dim=(2, 3))):
            assert (law(one) - law(other)).mean().abs() < 1.3  # Pillow cuts fractions off at each step
    assert finished[1].global_effects is None

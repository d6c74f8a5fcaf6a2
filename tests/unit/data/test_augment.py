# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from opendino.config import load, to_dict
from opendino.data.augment import CropsConfig, Look, MultiCrop, check_crops, show
from opendino.data.crops import Box
from opendino.errors import ConfigError, DataError

SMALL = CropsConfig(global_size=32, local_size=16, local_number=3)
STILL = replace(SMALL, flip=0.0, jitter=0.0, gray=0.0, blur="none", solarize=0.0)


def draw(config, image, count=1, channels=3, seed=0):
    crop, rng = MultiCrop(config, channels), np.random.default_rng(seed)
    return [crop(image, rng) for _ in range(count)]


def test_views_follow_the_published_chain(oracle, golden):
    """Means and deviations of eight measures over thousands of views, against torchvision's transforms."""
    count = 1500
    views = draw(SMALL, oracle.picture(), count)
    for name, pick in (
        ("first", lambda crops: crops.globals[0]),
        ("second", lambda crops: crops.globals[1]),
        ("local", lambda crops: crops.locals[1]),
    ):
        rows = np.array([oracle.measures(pick(crops).transpose(1, 2, 0)) for crops in views])
        mean, deviation = oracle.summary(rows)
        expected_mean, expected_deviation = golden[f"view/{name}"]
        error = 4.5 * expected_deviation * np.sqrt(1 / count + 1 / 3000)
        assert (np.abs(mean - expected_mean) <= error).all(), name
        assert deviation == pytest.approx(expected_deviation, rel=0.12), name


@pytest.mark.parametrize(
    ("blur", "probabilities"), [("effective", (0.0, 0.9, 0.5)), ("paper", (1.0, 0.1, 0.5)), ("none", (0.0, 0.0, 0.0))]
)
def test_share_of_blurred_views(blur, probabilities):
    """A view of a one-pixel checkerboard, uncut, keeps its contrast unless it is blurred."""
    board = Image.fromarray((np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8))
    config = replace(
        STILL,
        global_size=16,
        global_scale=(1.0, 1.0),
        local_scale=(1.0, 1.0),
        local_number=1,
        aspect=(1.0, 1.0),
        blur=blur,
        blur_sigma=(1.0, 2.0),
    )
    views = draw(config, board, 1000, channels=1)
    for view, probability in enumerate(probabilities):
        blurred = np.mean([[*crops.globals, *crops.locals][view].std() < 100 for crops in views])
        assert blurred == pytest.approx(probability, abs=4 * np.sqrt(probability * (1 - probability) / 1000))


def test_only_the_second_global_view_is_solarized():
    white = Image.new("RGB", (40, 40), (250, 250, 250))
    views = draw(replace(STILL, solarize=0.2), white, 1000)
    dark = np.mean([[view.mean() < 10 for view in (*crops.globals, *crops.locals)] for crops in views], axis=0)
    assert dark[1] == pytest.approx(0.2, abs=0.05)
    assert dark.sum() == dark[1]


def test_all_off_is_a_cut_of_the_image(oracle):
    whole = replace(STILL, global_scale=(1.0, 1.0), aspect=(1.0, 1.0), global_size=40)
    image = oracle.picture("RGB", 40, 40)
    for view in draw(whole, image)[0].globals:
        np.testing.assert_array_equal(view, np.asarray(image).transpose(2, 0, 1))


def test_certain_flips_mirror_the_image(oracle):
    image = oracle.picture("RGB", 40, 40)
    whole = replace(STILL, global_scale=(1.0, 1.0), aspect=(1.0, 1.0), global_size=40, flip=1.0)
    np.testing.assert_array_equal(draw(whole, image)[0].globals[0], np.asarray(image)[:, ::-1].transpose(2, 0, 1))


def test_jitter_draws_each_factor_from_its_range():
    """Brightness of flat grey 100 scales it by 0.6 to 1.4, evenly, in four of five views."""
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    config = replace(STILL, jitter=0.8, contrast=0.0, saturation=0.0, hue=0.0, local_number=0)
    levels = np.array([crops.globals[0].mean() for crops in draw(config, grey, 2000)])
    changed = levels[levels != 100]
    assert len(changed) / len(levels) == pytest.approx(0.8, abs=0.04)
    assert changed.min() == pytest.approx(60, abs=1)
    assert changed.max() == pytest.approx(140, abs=1)
    assert changed.mean() == pytest.approx(100, abs=3)
    assert changed.std() == pytest.approx(80 / np.sqrt(12), abs=1.5)


def test_the_order_of_the_jitter_is_drawn():
    """Brightness x 1.4 clips a bright image before or after contrast x 1.4: both orders come, with other results."""
    image = Image.fromarray(np.linspace(100, 250, 64).astype(np.uint8).reshape(8, 8)).convert("RGB")
    look = Look(8, Box(0, 0, 8, 8), False, (), (1.4, 1.4, 1.0, 0.0), False, 0.0, False)
    results = {
        show(image, look._replace(order=order)).tobytes() for order in ((0, 1, 2, 3), (1, 0, 2, 3), (3, 2, 1, 0))
    }
    assert len(results) == 2  # only the place of contrast relative to brightness matters for a grey image


def test_the_same_generator_state_gives_the_same_views(oracle):
    a, b = draw(SMALL, oracle.picture(), 2), draw(SMALL, oracle.picture(), 2)
    for one, other in zip(a, b, strict=True):
        for x, y in zip([*one.globals, *one.locals], [*other.globals, *other.locals], strict=True):
            np.testing.assert_array_equal(x, y)
    assert not np.array_equal(a[0].globals[0], a[1].globals[0])
    assert not np.array_equal(a[0].globals[0], a[0].globals[1])


def test_local_views_do_not_disturb_global_ones(oracle):
    few, many = (draw(replace(SMALL, local_number=n), oracle.picture())[0] for n in (0, 5))
    assert few.locals == []
    assert len(many.locals) == 5
    np.testing.assert_array_equal(few.globals, many.globals)


def test_grey_photographs_for_one_channel_and_for_three(oracle):
    one = draw(SMALL, oracle.picture("RGB"), channels=1)[0]
    three = draw(SMALL, oracle.picture("L"), channels=3)[0]
    assert one.globals[0].shape == (1, 32, 32)
    assert three.globals[0].shape == (3, 32, 32)
    assert one.locals[0].dtype == three.locals[0].dtype == np.uint8


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_arrays_of_any_number_of_channels(channels):
    array = np.random.default_rng(0).random((50, 60, channels), dtype=np.float32)
    for crops in draw(SMALL, array, 20, channels):
        for view in (*crops.globals, *crops.locals):
            assert view.dtype == np.float32
            assert view.shape[0] == channels
            assert view.min() >= 0
            assert view.max() <= 1


def test_an_image_of_other_channels_is_refused():
    array = np.zeros((10, 10, 4), dtype=np.float32)
    with pytest.raises(DataError, match=r"4 channels came where 6 were wanted.*channels=6"):
        draw(SMALL, array, channels=6)


@pytest.mark.parametrize(
    ("crops", "patch", "message"),
    [
        (CropsConfig(local_size=96), 14, "crops.local_size = 96 is not a multiple of the patch size 14; use 84 or 98"),
        (CropsConfig(global_size=220), 16, "crops.global_size = 220 .* use 208 or 224"),
        (CropsConfig(local_size=10), 14, "crops.local_size = 10 .* use 14$"),
    ],
)
def test_a_crop_that_is_no_multiple_of_the_patch(crops, patch, message):
    with pytest.raises(ConfigError, match=message):
        check_crops(crops, patch)


def test_published_sizes_fit_their_patches():
    check_crops(CropsConfig(), 14)
    check_crops(CropsConfig(local_size=96), 16)
    check_crops(CropsConfig(local_size=97, local_number=0), 16)  # no local crop, so its size is not used


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"jitter": -0.1},
        {"hue": 0.7},
        {"saturation": -1.0},
        {"global_scale": (0.5, 0.2)},
        {"local_scale": (0.0, 0.3)},
        {"global_scale": (0.5, 1.2)},
        {"aspect": (2.0, 1.0)},
        {"blur_sigma": (0.0, 1.0)},
        {"local_number": -1},
        {"global_size": 0},
        {"brightness": math.inf},
        {"blur_sigma": (0.1, math.inf)},
        {"mean": (math.nan,)},
        {"std": (-1.0,)},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match="crops"):
        CropsConfig(**wrong)


def test_settings_come_from_the_command_line():
    crops = load(CropsConfig, overrides=["local_scale=[0.1, 0.4]", "mean=[0.5, 0.4]", "blur=paper"])
    assert crops == CropsConfig(local_scale=(0.1, 0.4), mean=(0.5, 0.4), blur="paper")
    assert load(CropsConfig, defaults=to_dict(CropsConfig())) == CropsConfig()

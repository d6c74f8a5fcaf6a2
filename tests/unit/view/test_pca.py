# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from opendino.errors import ConfigError, DataError
from opendino.models.vision_transformer import VisionTransformer
from opendino.view import pca
from opendino.view.pca import PcaConfig


def scene(place, h=12, w=16, seed=0, dim=24, noise=0.05):
    """Features of a ground with an object of two parts in it: two far groups, one of them of two nearer ones."""
    rng = np.random.default_rng(1)
    ground, thing, part = rng.normal(size=(3, dim))
    features = np.tile(ground * 2, (h, w, 1))
    top, left = place
    features[top : top + 4, left : left + 6] = -thing * 2 + part
    features[top : top + 4, left + 3 : left + 6] = -thing * 2 - part
    features += noise * np.random.default_rng(seed).normal(size=features.shape)
    mask = np.zeros((h, w), bool)
    mask[top : top + 4, left : left + 6] = True
    return torch.from_numpy(features).float(), torch.from_numpy(mask)


def test_principal_axes_are_those_of_the_singular_values():
    x = torch.randn(200, 6, dtype=torch.float64) * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1]) + 7
    axes = pca.principal_axes(x, 3)
    _, singular, right = torch.linalg.svd(x - x.mean(0))
    torch.testing.assert_close(axes.directions.T @ axes.directions, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close((axes.directions.T @ right[:3].T).abs(), torch.eye(3, dtype=torch.float64))
    coordinates = axes(x)
    torch.testing.assert_close(coordinates.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(coordinates.square().sum(0), singular[:3].square())
    assert bool((coordinates.pow(3).sum(0) > 0).all())


def test_more_axes_than_dimensions_are_zero():
    axes = pca.principal_axes(torch.randn(10, 2), 4)
    assert axes.directions.shape == (2, 4)
    assert axes(torch.randn(3, 2))[:, 2:].abs().max() == 0


def test_otsu_finds_the_best_of_all_splits():
    values = torch.cat([torch.randn(40, dtype=torch.float64), torch.randn(70, dtype=torch.float64) * 2 + 6])
    found = values > pca.otsu(values)
    spread = {}
    for cut in values.sort().values[:-1].tolist():
        upper = values > cut
        low, high = values[~upper], values[upper]
        spread[cut] = len(low) * low.var(correction=0) + len(high) * high.var(correction=0)
    best = min(spread, key=lambda cut: float(spread[cut]))
    assert torch.equal(found, values > best)
    assert pca.otsu(torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1])) == pytest.approx(2.6)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_the_object(sign):
    features, mask = scene((4, 5))
    assert torch.equal(pca.foreground([sign * features])[0], mask)


def test_an_object_at_the_border_is_found_with_the_help_of_another_image():
    (first, mask), (second, other_mask) = scene((4, 5)), scene((8, 10), seed=3)
    found = pca.foreground([first, second])
    assert torch.equal(found[0], mask)
    assert torch.equal(found[1], other_mask)


def test_thresholds():
    features, mask = scene((4, 5))
    assert torch.equal(pca.foreground([features], 0.5)[0], mask)
    assert bool(pca.foreground([features], -1.0)[0].all())
    assert bool(pca.foreground([features], 2.0)[0].all())  # nothing left is no picture


def test_constant_features_are_grey_and_everywhere():
    (found,) = pca.colour_maps([torch.ones(5, 6, 8)])
    assert found.foreground.all()
    assert np.allclose(found.colours, 0.5)


def test_parts_have_their_own_colours_across_images():
    (first, mask), (second, other) = scene((4, 5)), scene((2, 7), seed=3, h=10, w=18)
    a, b = pca.colour_maps([first, second])
    left, right = a.colours[4:8, 5:8].reshape(-1, 3), a.colours[4:8, 8:11].reshape(-1, 3)
    assert abs(left[:, 0].mean() - right[:, 0].mean()) > 0.8
    np.testing.assert_allclose(b.colours[2:6, 7:10, 0].mean(), left[:, 0].mean(), atol=0.1)
    assert (a.foreground == mask.numpy()).all()
    assert (b.foreground == other.numpy()).all()
    # Stretched between percentiles that cut off something at either end, over both images together.
    inside = np.concatenate([a.colours[a.foreground], b.colours[b.foreground]])
    assert (inside.min(axis=0) == 0).all()
    assert (inside.max(axis=0) == 1).all()
    assert (np.concatenate([a.colours, b.colours], axis=None) <= 1).all()


def test_colours_do_not_depend_on_a_rotation_or_the_scale_of_the_features():
    features, _ = scene((4, 5), noise=0.3)
    rotation = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))[0]
    turned = (3 * features.double() @ rotation + 1).float()
    (a,), (b,) = pca.colour_maps([features]), pca.colour_maps([turned])
    assert (a.foreground == b.foreground).all()
    np.testing.assert_allclose(a.colours[a.foreground], b.colours[b.foreground], atol=1e-3)


def test_each_image_alone_on_request():
    pair = [scene((4, 5))[0], scene((4, 5), seed=5)[0] + 9]
    apart = pca.colour_maps(pair, PcaConfig(joint=False))
    (alone,) = pca.colour_maps(pair[1:])
    np.testing.assert_array_equal(apart[1].colours, alone.colours)


def test_components_are_chosen():
    features, _ = scene((4, 5), noise=0.3)
    (usual,), (turned,) = pca.colour_maps([features]), pca.colour_maps([features], PcaConfig(components=(3, 1, 2)))
    np.testing.assert_allclose(turned.colours, usual.colours[..., [2, 0, 1]])


@pytest.mark.parametrize(
    ("size", "patch", "longer", "expected"),
    [
        ((480, 640), 14, 448, (24, 32)),
        ((640, 480), 14, 448, (32, 24)),
        ((95, 1280), 14, 448, (2, 32)),
        ((5, 1280), 14, 448, (1, 32)),  # never without a patch
        ((28, 28), 10, 80, (8, 8)),
    ],
)
def test_the_grid_keeps_the_shape_of_the_image(size, patch, longer, expected):
    assert pca.patch_grid(size, patch, longer) == expected


def test_patch_features_are_those_of_the_whole_image_resized():
    backbone = VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
    found = pca.patch_features(backbone.train(), image, size=32)
    assert backbone.training
    spec = backbone.input_spec
    pixels = (torch.from_numpy(np.asarray(image, np.float32) / 255) - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    with torch.no_grad():
        wanted = backbone.eval().forward_features(pixels.permute(2, 0, 1)[None])["x_norm_patchtokens"][0]
    torch.testing.assert_close(found, wanted.view(6, 8, 64), atol=1e-5, rtol=0)
    assert pca.patch_features(backbone, image).shape == (6, 8, 64)  # twice the model's 16 pixels


def test_painting_places_every_patch():
    colours = np.zeros((2, 3, 3))
    colours[0, 0], colours[1, 2] = (1, 0, 0), (0, 0, 1)
    mask = np.ones((2, 3), bool)
    mask[0, 1] = False
    image = Image.new("RGB", (300, 200), (200, 100, 50))
    black = np.asarray(pca.paint(image, pca.ColourMap(colours, mask), PcaConfig(side=60, smooth=False)))
    assert black.shape == (40, 60, 3)
    assert (black[:20, :20] == (255, 0, 0)).all()
    assert (black[20:, 40:] == (0, 0, 255)).all()
    kept = np.asarray(
        pca.paint(image, pca.ColourMap(colours, mask), PcaConfig(side=60, smooth=False, background="keep"))
    )
    grey = kept[:20, 20:40].reshape(-1, 3)
    assert (grey == grey[0]).all()
    assert 0 < grey[0, 0] < 100
    smooth = np.asarray(pca.paint(image, pca.ColourMap(colours, mask), PcaConfig(side=60, smooth=True)))
    assert len(np.unique(smooth[30, :, 2])) > 5
    by_itself = np.asarray(pca.paint(image, pca.ColourMap(colours, mask), PcaConfig(side=60)))
    assert (by_itself == smooth).all(), "so few patches would be blocks"
    fine = pca.ColourMap(np.random.default_rng(0).random((20, 50, 3)), np.ones((20, 50), bool))
    squares = [np.asarray(pca.paint(image, fine, PcaConfig(side=60, smooth=one))) for one in (None, False)]
    assert (squares[0] == squares[1]).all()


def test_the_sheet_holds_every_pair():
    pairs = [(Image.new("RGB", (80, 40), (i, 0, 0)), Image.new("RGB", (80, 40), (0, i, 0))) for i in range(50, 55)]
    whole = np.asarray(pca.sheet(pairs, 40)).reshape(-1, 3)
    found = {tuple(colour) for colour in np.unique(whole, axis=0)}
    assert found == {(255, 255, 255)} | {(i, 0, 0) for i in range(50, 55)} | {(0, i, 0) for i in range(50, 55)}
    for i in range(50, 55):
        assert (whole == (i, 0, 0)).all(axis=1).sum() == 40 * 20


def test_channels_that_cannot_be_seen_are_shown_somehow():
    image = np.zeros((4, 4, 5), np.float32)
    image[..., 1] = 1
    assert pca.shown(image).getpixel((0, 0)) == (0, 255, 0)
    assert pca.shown(np.full((4, 4, 2), 0.5, np.float32)).getpixel((0, 0)) == (128, 128, 128)
    assert pca.shown(Image.new("L", (2, 2), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_a_run_writes_the_sheet(tmp_path):
    for i in range(5):
        Image.new("RGB", (40, 30), (40 * i, 90, 255 - 40 * i)).save(tmp_path / f"{i}.png")
    backbone = VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1)
    config = PcaConfig(out=str(tmp_path / "deep" / "x.png"), images=3, side=64, device="cpu")
    path = pca.run(backbone, [str(tmp_path), str(tmp_path / "4.png")], config)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
    with pytest.raises(DataError, match="no image was named"):
        pca.run(backbone, [], config)
    with pytest.raises(DataError, match="nothing"):
        pca.run(backbone, [str(tmp_path / "nothing")], config)
    with pytest.raises(ConfigError, match="device = nonsense: cannot be used here"):
        pca.run(backbone, [str(tmp_path / "4.png")], PcaConfig(device="nonsense"))
    with pytest.raises(ConfigError, match="could not be written"):
        pca.run(backbone, [str(tmp_path / "4.png")], PcaConfig(out=str(tmp_path / "4.png" / "x.png"), device="cpu"))


def test_images_of_a_set_are_spread_over_it(tmp_path):
    for i in range(10):
        Image.new("RGB", (4, 4), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    reds = [image.getpixel((0, 0))[0] for image in pca.read(str(tmp_path), 3, PcaConfig(images=4))]
    assert reds == [0, 60, 120, 180]
    assert len(pca.read(str(tmp_path), 3, PcaConfig(images=99))) == 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"components": (0, 1, 2)}, "count from 1"),
        ({"percentiles": (50.0, 50.0)}, "two rising numbers"),
        ({"images": 0}, "1 or more"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PcaConfig(**wrong)


def test_real_photographs(real_data, tmp_path):
    backbone = VisionTransformer(img_size=56, patch_size=14, embed_dim=64, depth=2, num_heads=1)
    config = PcaConfig(out=str(tmp_path / "x.png"), images=8, side=64, size=224, background="keep", device="cpu")
    source = str(real_data / "photos.parquet")
    with Image.open(pca.run(backbone, [source], config)) as sheet:
        whole = np.asarray(sheet)
    images = pca.read(source, 3, config)
    maps = pca.colour_maps([pca.patch_features(backbone, image, 224) for image in images], config)
    painted = [pca.paint(image, colours, config) for image, colours in zip(images, maps, strict=True)]
    np.testing.assert_array_equal(whole, pca.sheet(list(zip(map(pca.shown, images), painted, strict=True)), 64))
    share = np.concatenate([one.foreground.ravel() for one in maps]).mean()
    assert 0.05 < share < 0.95
    colours = np.concatenate([one.colours[one.foreground] for one in maps])
    assert colours.std(axis=0).min() > 0.1
    assert np.abs(np.corrcoef(colours.T)[np.triu_indices(3, 1)]).max() < 0.3  # components are uncorrelated


def test_a_page_holds_its_pictures(tmp_path):
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1)
    for number in range(2):
        Image.new("RGB", (20, 16), (90 * number, 30, 60)).save(tmp_path / f"{number}.png")
    done = pca.run(backbone, [str(tmp_path)], PcaConfig(out=str(tmp_path / "page.html"), device="cpu"))
    text = done.read_text()
    assert text.count("<img") == 4
    assert 'src="http' not in text


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ((375, 500), 256),  # 32 patches of 8 pixels
        ((100, 90), 100),  # no more than the image has
        ((20, 30), 64),  # twice the model's own at least
    ],
)
def test_the_map_is_fine_enough_where_the_image_allows(size, side):
    small = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=1)
    assert pca.fine_size(small, size) == side
    grid = pca.patch_features(small, Image.new("RGB", size[::-1])).shape[:2]
    assert max(grid) == round(side / 8)


def test_a_large_model_is_shown_at_twice_its_own_size():
    large = VisionTransformer(img_size=224, patch_size=14, embed_dim=16, depth=1, num_heads=1)
    assert pca.fine_size(large, (1000, 2000)) == 448


def test_a_size_without_end_is_refused():
    backbone = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=1)
    with pytest.raises(
        ConfigError, match=r"size = 100000: makes 12500 x 12500 patches of this image; give size=2048 or"
    ):
        pca.patch_features(backbone, Image.new("RGB", (9, 9)), 100_000)

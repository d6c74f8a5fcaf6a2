# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from opendino import onednn
from opendino.embed import Embedder, FeatureSettings
from opendino.embed.features import same_shape
from opendino.errors import ConfigError
from opendino.fast.optimize import optimize
from opendino.models.vision_transformer import VisionTransformer


def model(**settings):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return VisionTransformer(**(sizes | settings))


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_features_are_those_of_the_model():
    backbone = model(num_register_tokens=2)
    embedder = Embedder(backbone, FeatureSettings(features=("cls", "patch_mean", "registers", "patches")))
    image = embedder.prepare(picture(30, 40))
    found = embedder(image[None])
    wanted = backbone.forward_features(image[None])
    torch.testing.assert_close(found["cls"], wanted["x_norm_clstoken"])
    torch.testing.assert_close(found["patch_mean"], wanted["x_norm_patchtokens"].mean(dim=1))
    torch.testing.assert_close(found["registers"], wanted["x_norm_regtokens"])
    torch.testing.assert_close(found["patches"].flatten(1, 2), wanted["x_norm_patchtokens"])
    assert {name: tuple(one.shape[1:]) for name, one in found.items()} == embedder.shapes


@pytest.mark.parametrize("merge", [0.0, 0.2])
def test_without_patches_the_last_block_does_less_and_says_the_same(merge, monkeypatch):
    backbone, image = model(num_register_tokens=2), torch.randn(2, 3, 16, 16)
    settings = {"merge": merge, "layers": (2, 0)}
    whole = Embedder(backbone, FeatureSettings(features=("cls", "registers", "patch_mean"), **settings))(image)
    monkeypatch.setattr(VisionTransformer, "get_intermediate_layers", None)
    found = Embedder(backbone, FeatureSettings(features=("registers", "cls"), **settings))(image)
    assert list(found) == ["registers_2", "cls_2", "registers_0", "cls_0"]
    for name, one in found.items():
        torch.testing.assert_close(one, whole[name], rtol=1e-5, atol=1e-5)


def test_layers_come_in_the_order_asked_for():
    backbone = model()
    embedder = Embedder(backbone, FeatureSettings(layers=(2, 0)))
    image = embedder.prepare(picture(20, 20))[None]
    first, last = (cls for _, cls in backbone.get_intermediate_layers(image, n=[0, 2], return_class_token=True))
    found = embedder(image)
    assert list(found) == ["cls_2", "cls_0"]
    torch.testing.assert_close(found["cls_0"], first)
    torch.testing.assert_close(found["cls_2"], last)


def test_normalize_makes_unit_vectors():
    embedder = Embedder(model(), FeatureSettings(features=("cls", "patches"), normalize=True))
    found = embedder.of([picture(20, 20)])[0]
    torch.testing.assert_close(found["patches"].norm(dim=-1), torch.ones(4, 4))
    torch.testing.assert_close(found["cls"].norm(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("fit", "shape"), [("crop", (16, 16)), ("stretch", (16, 16)), ("pad", (16, 16)), ("whole", (8, 16))]
)
def test_what_the_model_sees(fit, shape):
    # White on the left half, black on the right, twice as wide as high.
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, :40] = 255
    embedder = Embedder(model(), FeatureSettings(fit=fit))
    seen = embedder.prepare(Image.fromarray(pixels))
    assert tuple(seen.shape[1:]) == shape
    bright = seen.mean(dim=0) > 0
    # What is cut or padded is the same on all sides, so the border of white stays in the middle.
    assert bright[shape[0] // 2].tolist() == [True] * (shape[1] // 2) + [False] * (shape[1] // 2)
    assert bool(bright[0].any()) is (fit != "pad")


def test_pictures_of_several_shapes_keep_their_order():
    embedder = Embedder(model(), FeatureSettings(features=("patches",), fit="whole"))
    pictures = [picture(40, 80, 1), picture(80, 40, 2), picture(40, 80, 3)]
    together = embedder.of(pictures)
    assert [tuple(one["patches"].shape[:2]) for one in together] == [(2, 4), (4, 2), (2, 4)]
    for one, alone in zip(together, pictures, strict=True):
        torch.testing.assert_close(one["patches"], embedder.of([alone])[0]["patches"])
    assert same_shape([torch.zeros(1, 2, 2), None, torch.zeros(1, 3, 2), torch.zeros(1, 2, 2)]) == [[0, 3], [2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (3,)}, "has 3 blocks; give numbers from 0 to 2"),
        ({"layers": (1, 1)}, "name each block once"),
        ({"features": ("registers",)}, "the model has none"),
        ({"size": 18}, "no multiple of the model's patch, 4; give 16 or 20"),
        ({"features": ("cl",)}, "did you mean cls"),
        ({"features": ()}, "at least one"),
        ({"device": "abacus"}, "abacus"),
        ({"size": 40000}, "makes more than 512 patches along a side"),
        ({"merge": 0.6}, "a share from 0 to 0.5"),
        ({"merge": float("nan")}, "a share from 0 to 0.5"),
        ({"merge": 0.1, "optimize": False}, "device=cpu and optimize=true"),
    ],
)
def test_what_does_not_fit_is_told(settings, message):
    with pytest.raises(ConfigError, match=message):
        Embedder(model(), FeatureSettings(**settings))


def test_patches_are_merged_as_the_fast_copy_merges_them():
    backbone, images = model(num_register_tokens=2), torch.randn(3, 3, 32, 32)
    settings = FeatureSettings(("cls", "patches"), merge=0.2, device="cpu", size=32)
    found = Embedder(backbone, settings)(images)
    wanted = optimize(backbone, merge=0.2, trial=False).forward_features(images)
    torch.testing.assert_close(found["cls"], wanted["x_norm_clstoken"])
    torch.testing.assert_close(found["patches"].flatten(1, 2), wanted["x_norm_patchtokens"])
    few = [len({tuple(token.tolist()) for token in image}) for image in found["patches"].flatten(1, 2)]
    assert all(0 < count < 64 for count in few), "patches that were merged come back as equal ones"


def test_eight_bits_are_for_the_fast_copy():
    backbone = model(embed_dim=64, num_heads=1)
    with pytest.raises(ConfigError, match="device=cpu and optimize=true"):
        Embedder(backbone, FeatureSettings(precision="int8", optimize=False, device="cpu", size=16))
    if not onednn.int8_available():
        pytest.skip("this processor has no fast 8-bit products")
    images = torch.randn(3, 3, 16, 16)
    found, wanted = (Embedder(backbone, FeatureSettings(precision=p, device="cpu", size=16))(images)["cls"]
                     for p in ("int8", "fp32"))  # fmt: skip
    assert not torch.equal(found, wanted)
    assert torch.cosine_similarity(found, wanted).min() > 0.99

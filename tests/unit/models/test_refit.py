# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.data.collate import normalize
from opendino.errors import ModelError
from opendino.models.input_spec import InputSpec
from opendino.models.presets import create
from opendino.models.refit import mix_channels, refit


def backbone(**more):
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.5}
    return create("vit_custom", **{**settings, **more}).eval()


def tokens(model, pixels):
    """Features of pixels of 0 to 1, by the model's own normalisation."""
    spec = model.input_spec
    features = model.forward_features(normalize(pixels, spec.mean, spec.std))
    return torch.cat([features["x_norm_clstoken"][:, None], features["x_norm_patchtokens"]], dim=1)


@pytest.mark.parametrize("rule", [{}, {"interpolate_antialias": True, "interpolate_offset": 0.0}], ids=["plain", "reg"])
@pytest.mark.parametrize("size", [48, (24, 40), 16])
def test_the_resized_table_is_what_the_model_resized_on_the_fly(rule, size):
    model = backbone(**rule)
    fitted = refit(model, size, model.input_spec)
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, 3, height, width)
    assert fitted.grid == (height // 8, width // 8)
    assert torch.equal(fitted.forward_features(images)["x_prenorm"], model.forward_features(images)["x_prenorm"])
    assert fitted.pos_embed.requires_grad
    assert fitted.forward_features(torch.randn(1, 3, 64, 64))["x_norm_patchtokens"].shape[1] == 64, "it is not baked"
    assert model.grid == (4, 4)


def test_a_size_that_is_no_multiple_of_the_patch_names_its_neighbours():
    with pytest.raises(ModelError, match=r"44x44 pixels are not a multiple of the patch size 8.*40x40 and 48x48"):
        refit(backbone(), 44, InputSpec.default((44, 44), 3))


def test_rules_by_hand():
    assert mix_channels(3, 1).tolist() == [[1, 1, 1]], "one channel gets the sum"
    assert mix_channels(1, 3).tolist() == [[1 / 3]] * 3
    assert mix_channels(3, 5).tolist() == [[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1], [0.5, 0, 0], [0, 0.5, 0]]
    assert mix_channels(5, 2).tolist() == [[0.5] * 5] * 2
    assert mix_channels(2, 4, "mean").tolist() == [[0.25, 0.25]] * 4
    assert mix_channels(2, 3, "keep").tolist() == [[1, 0], [0, 1], [0, 0]]
    assert torch.equal(mix_channels(3, 6) * 2, torch.eye(3, dtype=torch.float64).repeat(2, 1)), "timm: times 3 / 6"


@pytest.mark.parametrize("rule", ["keep", "repeat"])
def test_what_would_leave_channels_out_is_refused(rule):
    with pytest.raises(ModelError, match=rf"adapt\.channels = {rule} cannot fit weights for 4 channels to 3.*use mean"):
        mix_channels(4, 3, rule)


def test_weights_by_hand():
    """Two channels to one, a patch of one pixel: w = 2, 3 and b = 1, normalised by (x - 0.5) / 0.25 and x / 0.5."""
    model = backbone(patch_size=1, img_size=2, in_chans=2)
    model.input_spec = InputSpec((2, 2), 2, (0.5, 0.0), (0.25, 0.5))
    with torch.no_grad():
        model.patch_embed.proj.weight[0] = torch.tensor([2.0, 3.0]).view(2, 1, 1)
        model.patch_embed.proj.bias[0] = 1.0
    fitted = refit(model, None, InputSpec((2, 2), 1, (0.2,), (0.1,)))
    # On pixels: 8 x1 + 6 x2 - 3, so 14 x - 3 of a grey pixel; x = 0.1 z + 0.2 makes it 1.4 z - 0.2.
    assert fitted.patch_embed.proj.weight[0].item() == pytest.approx(1.4)
    assert fitted.patch_embed.proj.bias[0].item() == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("old", "new", "rule"), [(3, 1, "auto"), (3, 5, "auto"), (3, 4, "mean"), (5, 3, "auto"), (1, 3, "auto")]
)
def test_an_image_of_equal_channels_says_the_same_as_before(old, new, rule):
    model = backbone(in_chans=old)
    fitted = refit(model, None, InputSpec.default((32, 32), new), rule)
    assert fitted.in_chans == new
    grey = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(
        tokens(fitted, grey.expand(-1, new, -1, -1)), tokens(model, grey.expand(-1, old, -1, -1)), atol=2e-5, rtol=1e-5
    )


def test_kept_channels_say_what_they_said_whatever_is_added():
    model = backbone()
    fitted = refit(model, None, InputSpec((32, 32), 5, (0.1, 0.2, 0.3, 0.4, 0.5), (0.2,) * 5), "keep")
    pixels = torch.rand(2, 5, 32, 32)
    torch.testing.assert_close(tokens(fitted, pixels), tokens(model, pixels[:, :3]), atol=2e-5, rtol=1e-5)


def test_channels_that_stay_keep_their_weights():
    model = backbone()
    fitted = refit(model, None, InputSpec((32, 32), 3, (0.0,) * 3, (1.0,) * 3))
    assert torch.equal(fitted.patch_embed.proj.weight, model.patch_embed.proj.weight)
    assert fitted.input_spec.mean == (0.0,) * 3
    fitted.patch_embed.proj.weight.data.zero_()
    assert model.patch_embed.proj.weight.abs().sum() > 0, "a copy"

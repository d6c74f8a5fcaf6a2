# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.cli.main import main
from opendino.errors import ConfigError
from opendino.eval._features import Features
from opendino.eval.drift import DriftConfig, compare, linear_cka, neighbour_overlap, run, warnings
from opendino.models.presets import create


def features(cls, patch_mean=None):
    return Features(cls, cls if patch_mean is None else patch_mean, torch.arange(len(cls)))


def rotation(size):
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q.float()


def test_cka_by_hand():
    """Centred columns (1, 0, -1) and (1, -2, 1) are at right angles: nothing in common; with their mix, half of it."""
    a = torch.tensor([[2.0], [1.0], [0.0]])
    b = torch.tensor([[1.0], [-2.0], [1.0]])
    assert linear_cka(a, b) == pytest.approx(0.0, abs=1e-12)
    # x'x = 2, y'y = 6: of both columns side by side, |x' [x y]|^2 = 4, |[x y]' [x y]| = sqrt(4 + 36).
    assert linear_cka(a, torch.cat([a, b], dim=1)) == pytest.approx(4 / (2 * math.sqrt(40)))


def test_cka_does_not_see_rotation_shift_or_scale():
    x = torch.randn(30, 8)
    assert linear_cka(x, 3 * x @ rotation(8) + 5) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, torch.randn(30, 8)) < 0.6
    assert linear_cka(x, torch.ones(30, 8)) == 0


def test_neighbours_by_hand():
    """Four directions; in the second set the third image has gone over to the other side."""
    angles = torch.tensor([0.0, 10.0, 25.0, 90.0]).deg2rad()
    moved = torch.tensor([0.0, 10.0, 100.0, 90.0]).deg2rad()
    before, after = (torch.stack([a.cos(), a.sin()], dim=1) for a in (angles, moved))
    # Nearest before: 1, 0, 1, 2; after: 1, 0, 3, 2.
    assert neighbour_overlap(before, after, 1) == 0.75
    assert neighbour_overlap(before, after, 3) == 1, "all of them are all of them"
    assert neighbour_overlap(before, before @ rotation(2) * 7, 2) == 1


def test_nothing_moved_is_one_throughout():
    x, y = torch.randn(20, 6), torch.randn(20, 6)
    assert all(value == pytest.approx(1, abs=1e-6) for value in compare(features(x, y), features(x, y), 5).values())


def test_a_rotation_shows_in_the_cosine_alone():
    x = torch.randn(40, 16)
    figures = compare(features(x), features(x @ rotation(16)), 5)
    assert figures["cls_cka"] == pytest.approx(1, abs=1e-6)
    assert figures["cls_neighbours"] == 1
    assert figures["cls_cosine"] < 0.5
    assert figures["cls_cosine_low"] <= figures["cls_cosine"]


def test_models_of_other_width_have_no_cosine():
    figures = compare(features(torch.randn(9, 4)), features(torch.randn(9, 6)), 50)
    assert {name.rpartition("_")[2] for name in figures} == {"cka", "neighbours"}


def test_images_that_one_model_could_not_read_are_left_out():
    x = torch.randn(9, 4)
    fewer = Features(x[1:], x[1:], torch.arange(1, 9))
    assert compare(features(x), fewer, 3)["cls_cosine"] == pytest.approx(1)


def test_a_warning_names_what_moved():
    figures = {"cls_cka": 0.45, "patch_mean_cka": 0.9}
    (sentence,) = warnings(figures, 0.5)
    assert sentence.startswith("cls: CKA with the start is 0.45")
    assert "adapt.lora" in sentence
    assert warnings(figures, 1.0) == []


def test_the_protocol(picture_folder, tmp_path, capsys):
    torch.manual_seed(3)
    model = create("vit_nano4", depth=1, embed_dim=32, img_size=16)
    with torch.no_grad():
        model.mask_token.add_(1)  # which no image shows
    before = save_weights(model, tmp_path / "before")
    with torch.no_grad():
        model.mask_token.add_(1)
    after = save_weights(model, tmp_path / "after")
    words = [f"against={before}", f"data={picture_folder}", "drift.sample=12", f"out={tmp_path / 'out'}"]
    assert main(["eval", "drift", str(after), *words]) == 0
    assert "cls_neighbours" in capsys.readouterr().out
    with torch.no_grad():
        for part in model.parameters():
            part.normal_(std=0.1)
    results = run(model, DriftConfig(data=str(picture_folder), against=str(before)))
    assert results.data["images"] == 40
    assert results.figures["cls_cka"] < 0.99


@pytest.mark.parametrize(("left_out", "message"), [("data", "data is missing"), ("against", "against is missing")])
def test_what_is_missing_is_said(left_out, message, picture_folder):
    given = {"data": str(picture_folder), "against": "nowhere"}
    del given[left_out]
    with pytest.raises(ConfigError, match=message):
        run(create("vit_nano4", depth=1), DriftConfig(**given))

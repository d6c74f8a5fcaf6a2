# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import pytest

from opendino.checkpoint.weights import save_weights
from opendino.cli._decoding import decoding_of
from opendino.errors import ConfigError
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture
def save():
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=64, depth=1, num_heads=1)
    return lambda folder, **extra: save_weights(backbone, folder, extra)


def test_the_weights_say_it_wherever_they_are(tmp_path, save):
    said = {"value_range": [0.0, 4095.0], "orient": False}
    weights = save(tmp_path / "run" / "weights", step=1, decoding=said)
    copied = shutil.copytree(weights, tmp_path / "copied")
    for place in (tmp_path / "run", weights, weights / "model.safetensors", copied, copied / "model.safetensors"):
        assert decoding_of(str(place)) == said
    assert decoding_of(str(copied), "data.") == {"data.value_range": [0.0, 4095.0], "data.orient": False}


def test_a_run_says_it_where_its_weights_do_not(tmp_path, save):
    run = tmp_path / "run"
    weights = save(run / "weights", step=1)
    (run / "config.yaml").write_text("images: {value_range: [-5, 5], orient: true, label_column: kind}\n")
    for place in (run, weights, weights / "model.safetensors"):
        assert decoding_of(str(place)) == {"value_range": [-5, 5], "orient": True}
    save(weights, decoding={"value_range": None, "orient": False})
    assert decoding_of(str(run)) == {"value_range": None, "orient": False}
    save(weights)
    (run / "config.yaml").write_text("images: [\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: not valid YAML"):
        decoding_of(str(run))


def test_other_models_say_nothing(tmp_path, save):
    face = tmp_path / "face"
    face.mkdir()
    (face / "config.json").write_text(json.dumps({"model_type": "dinov2", "provenance": {"decoding": {"orient": 1}}}))
    (tmp_path / "x.pth").write_bytes(b"")
    for model in (face, save(tmp_path / "bare"), tmp_path / "x.pth", tmp_path / "nowhere", "facebook/dinov2-base"):
        assert decoding_of(str(model)) == {}

# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from opendino.errors import ConfigError
from opendino.eval import _results
from opendino.eval._results import Results
from opendino.eval.adapters import MapAdapter
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer


def example(**changes):
    fields = {
        "protocol": "knn",
        "figures": {"top1_k10": 71.25, "C": 1e-06},
        "data": {"train": "in1k/train", "val": "in1k/val", "val_images": 3},
        "model": {"source": "runs/x"},
        "config": {"knn": {"k": [10]}},
        "seconds": 1.5,
        "notes": ("one image was left out",),
    }
    return Results(**{**fields, **changes})


def test_what_is_written_is_read_back(tmp_path):
    path = example().write(tmp_path / "run" / "eval")
    assert _results.read(path) == example()
    assert json.loads(path.read_text())["opendino"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_command_and_the_seeds_stand_by_themselves(tmp_path):
    config = {"linear": {"seed": 3, "lrs": [0.1]}, "seed": 1}
    one = example(config=config, model={"source": "runs/x", "command": "opendino eval linear 'a b'", "sha256": "0f"})
    path = one.write(tmp_path)
    written = json.loads(path.read_text())
    assert (written["command"], written["seeds"]) == ("opendino eval linear 'a b'", {"linear.seed": 3, "seed": 1})
    assert "command" not in written["model"]
    assert _results.read(path) == one
    again = example(config=config, model={"source": "runs/x", "command": "another way to say it", "sha256": "0f"})
    assert again.file_name() == path.name


def test_equal_settings_share_a_file_and_others_do_not():
    name = example().file_name()
    assert name.startswith("knn-in1k-val-")
    assert name.endswith(".json")
    assert example(figures={}, seconds=9.0).file_name() == name
    assert example(config={"knn": {"k": [20]}}).file_name() != name
    assert example(data={"train": "other", "val": "in1k/val"}).file_name() != name


def test_two_models_share_a_folder_without_overwriting_each_other(tmp_path):
    models = [
        {"source": f"runs/{name}", "sha256": sha} for name, sha in (("x", "0f"), ("y", "1e"), ("x/weights", "0f"))
    ]
    paths = [example(model=model).write(tmp_path) for model in models]
    assert paths[0] != paths[1]
    assert paths[0] == paths[2]  # the same weights, found at another place
    assert _results.read(paths[1]).model["source"] == "runs/y"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="could not be written"):
        example().write(tmp_path / "file")


def test_the_table():
    assert example().table().splitlines() == [
        "| figure   | value |",
        "| :------- | ----: |",
        "| top1_k10 | 71.25 |",
        "| C        | 1e-06 |",
        "note: one image was left out",
    ]


class Tower(torch.nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.map, self.activation = torch.nn.Conv2d(3, 4, 4, 4), activation

    def forward(self, x):
        return self.activation(self.map(x))


def test_models_of_other_libraries_differ_by_more_than_their_weights():
    spec, weights = InputSpec((8, 8), 3, (0.5,) * 3, (0.5,) * 3), Tower(torch.nn.GELU()).state_dict()
    found = []
    for activation in (torch.nn.GELU(), torch.nn.ReLU(), torch.nn.GELU()):
        tower = Tower(activation)
        tower.load_state_dict(weights)
        found.append(_results.model_hash(MapAdapter(tower, tower, spec)))
    assert found[0] == found[2] != found[1]


def test_a_model_describes_itself():
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=64, depth=1, num_heads=1)
    found = _results.describe(backbone, {"source": "x.pth"})
    assert found["source"] == "x.pth"
    assert (found["embed_dim"], found["depth"], found["patch_size"]) == (64, 1, 4)
    assert found["parameters"] == sum(p.numel() for p in backbone.parameters())
    assert found["sha256"] == _results.model_hash(backbone)


def test_the_hash_of_a_model_is_that_of_its_weights():
    first = VisionTransformer(img_size=8, patch_size=4, embed_dim=64, depth=1, num_heads=1)
    second = VisionTransformer(img_size=8, patch_size=4, embed_dim=64, depth=1, num_heads=1)
    assert _results.model_hash(first) != _results.model_hash(second)
    second.load_state_dict(first.state_dict())
    assert _results.model_hash(first) == _results.model_hash(second)
    with torch.no_grad():
        second.norm.bias[3] += 1e-7
    assert _results.model_hash(first) != _results.model_hash(second)
    assert _results.model_hash(first.bfloat16()) != _results.model_hash(first.float())

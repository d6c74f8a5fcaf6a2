# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from safetensors.torch import save_file

from opendino.checkpoint._reading import is_weights, parts_of, read, read_json
from opendino.errors import CheckpointError


def test_an_index_gives_the_tensors_of_all_its_parts(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert parts_of(index) == ["model-1.safetensors", "model-2.safetensors"]
    content = read(index)
    assert content.keys() == {"a", "b"}
    assert torch.equal(content["b"], torch.zeros(2))
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is missing beside it"):
        read(index)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_cannot_name_files_elsewhere(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        read(index)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": {}}', "{", "\udcff"])
def test_an_index_that_is_none(tmp_path, content):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read(index)


def test_json_of_another_kind(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="holds a list; wanted a JSON object"):
        read_json(tmp_path / "x.json")


def test_a_torch_file_that_holds_no_names(tmp_path):
    torch.save(torch.ones(2), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"holds a Tensor; wanted a state dict"):
        read(tmp_path / "x.pth")


def test_names_of_weights_files(tmp_path):
    good = ["a.pth", "a.pt", "a.bin", "a.safetensors", "model.safetensors.index.json"]
    assert all(is_weights(tmp_path / name) for name in good)
    assert not any(is_weights(tmp_path / name) for name in ("a.png", "config.json", "a.npz", "a"))

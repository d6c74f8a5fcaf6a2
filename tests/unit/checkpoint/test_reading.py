# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from safetensors.torch import save_file

from opendino.checkpoint._reading import is_weights, parts_of, plausible, read, read_json
from opendino.errors import CheckpointError, ConfigError


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


@pytest.mark.parametrize("names", [3, None, ["a"], "sub/../../x"])
def test_an_index_whose_names_are_no_names(tmp_path, names):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": names, "b": "x.safetensors"}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        parts_of(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "begins with b'version https://'; .*git lfs pull"),
        (b"<!DOCTYPE html>", "is no file that torch.save wrote"),
        (b"hello", "is no file that torch.save wrote"),
        (b"", "is empty; download or copy it again"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "damaged"),
        (b"\x80\x02]q\x00(", "damaged"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
    ],
)
def test_files_of_other_kinds_and_damaged_ones_say_so(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.pth: .*{message}"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("old", [True, False], ids=["before 1.6", "zip"])
def test_no_damage_escapes_as_another_error(tmp_path, old):
    torch.save({"a": torch.arange(40.0)}, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    whole = (tmp_path / "x.pth").read_bytes()
    refused = 0
    for place in range(0, len(whole), max(len(whole) // 150, 1)):
        for spoilt in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
            (tmp_path / "x.pth").write_bytes(spoilt)
            try:
                read(tmp_path / "x.pth")
            except CheckpointError:
                refused += 1
    assert refused > 100


def test_what_torch_says_of_a_file_cut_short_is_not_passed_on(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[:2000])
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / "x.pth")
    assert str(caught.value) == (
        f"{tmp_path}/x.pth: is damaged or was cut short (it holds 2000 bytes); download or copy it again"
    )
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"x\.safetensors: is empty; download"):
        read(tmp_path / "x.safetensors")


def test_a_file_that_is_not_there_or_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 20_000, "9" * 5000, "\x00", "[1]"])
def test_text_that_is_no_json_object_is_refused_however_it_is_not(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"a\.json: "):
        read_json(tmp_path / "a.json")


def test_values_of_any_kind_are_no_accident_of_ours(tmp_path):
    with (
        pytest.raises(CheckpointError, match=r"c\.json: does not hold what it should \('x' is missing\)"),
        plausible(tmp_path / "c.json"),
    ):
        {}["x"]
    with pytest.raises(ConfigError, match="ours"), plausible(tmp_path / "c.json"):  # a ValueError too
        raise ConfigError("ours")

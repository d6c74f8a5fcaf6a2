# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from opendino.checkpoint import _fetch
from opendino.checkpoint.catalog import CATALOG, Entry
from opendino.errors import CheckpointError

SMALL = Entry("dinov2_vits14", "official", "vits14", 5)
FILE = "dinov2_vits14_pretrain.pth"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Empty caches, and a network that nobody may use unless a test says how it answers."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"the network was asked: {args}")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path


def cache(tmp_path, repository, files, missing=()):
    """A repository in the layout of huggingface_hub's cache."""
    home = tmp_path / "hf" / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / "abc"
    snapshot.mkdir(parents=True, exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text("abc")
    for name, text in files.items():
        (snapshot / name).write_text(text)
    (home / ".no_exist" / "abc").mkdir(parents=True, exist_ok=True)
    for name in missing:
        (home / ".no_exist" / "abc" / name).touch()
    return snapshot


def test_an_official_file_in_torch_hubs_cache_is_taken(places):
    path = places / "torch" / "checkpoints" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(20))
    assert _fetch.official_file(SMALL, FILE) == path


def test_an_official_file_is_downloaded_to_torch_hubs_cache(places, monkeypatch):
    asked = []

    def download(url, path, progress):
        asked.append((url, path))
        Path(path).write_bytes(bytes(21))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    path = _fetch.official_file(SMALL, FILE)
    assert path == places / "torch" / "checkpoints" / FILE
    assert asked == [(f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/{FILE}", str(path))]


def test_a_file_cut_short_is_named(places):
    path = places / "torch" / "checkpoints" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(19))
    with pytest.raises(
        CheckpointError, match=rf"{FILE}: has 19 bytes, and dinov2_vits14 takes 20 or more; .*cut short"
    ):
        _fetch.official_file(SMALL, FILE)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_file_and_its_place_are_named(places, monkeypatch, offline):
    def fail(*args, **kwargs):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reason = "HF_HUB_OFFLINE is set" if offline else "no route to host"
    with pytest.raises(CheckpointError) as caught:
        _fetch.official_file(CATALOG["dinov2_vitb14_reg_lc"], "dinov2_vitb14_reg4_linear4_head.pth")
    assert str(caught.value) == (
        f"dinov2_vitb14_reg_lc: dinov2_vitb14_reg4_linear4_head.pth is not in {places}/torch/checkpoints and cannot be "
        f"downloaded ({reason}); get https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/"
        "dinov2_vitb14_reg4_linear4_head.pth and put it there, or give the file's path"
    )


def test_a_cached_repository_needs_no_network(places):
    files = {"config.json": "{}", "model.safetensors": "x", "preprocessor_config.json": "{}"}
    snapshot = cache(places, "a/b", files)
    assert _fetch.hub_folder("a/b") == snapshot


def test_a_cached_repository_with_older_or_several_files(places):
    snapshot = cache(places, "a/old", {"config.json": "{}", "pytorch_model.bin": "x"}, ["preprocessor_config.json"])
    assert _fetch.hub_folder("a/old") == snapshot
    index = json.dumps({"weight_map": {"x": "part-1.safetensors"}})
    files = {"config.json": "{}", "model.safetensors.index.json": index, "part-1.safetensors": "x"}
    snapshot = cache(places, "a/many", files, ["preprocessor_config.json", "model.safetensors"])
    assert _fetch.hub_folder("a/many") == snapshot


def test_what_is_missing_is_downloaded_and_what_does_not_exist_is_passed_over(places, monkeypatch):
    asked = []

    def download(repository, file):
        asked.append(file)
        if file in ("preprocessor_config.json", "model.safetensors", "model.safetensors.index.json"):
            raise EntryNotFoundError("404")
        return str(cache(places, repository, {file: "x"}) / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    folder = _fetch.hub_folder("a/b")
    assert {path.name for path in folder.iterdir()} == {"config.json", "pytorch_model.bin"}
    assert asked[-2:] == ["pytorch_model.bin", "preprocessor_config.json"]


def test_an_unreachable_preprocessor_is_told_of(places, monkeypatch, caplog):
    cache(places, "a/b", {"config.json": "x", "model.safetensors": "x"})

    def download(repository, file):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    _fetch.hub_folder("a/b")
    assert "a/b: preprocessor_config.json is out of reach" in caplog.text


def test_a_repository_without_weights(places, monkeypatch):
    def download(repository, file):
        raise EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"a/b: the repository holds none of model\.safetensors, "):
        _fetch.hub_folder("a/b")


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("cannot reach the hub"), OSError("401 gated")])
def test_a_repository_out_of_reach(places, monkeypatch, error):
    def download(repository, file):
        raise error

    cache(places, "a/b", {"config.json": "{}"})
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError) as caught:
        _fetch.hub_folder("a/b")
    assert str(caught.value) == (
        f"a/b: model.safetensors is not in {places}/hf and cannot be downloaded ({error}); run `hf download a/b` where "
        "there is a network and copy the folder models--a--b there, or put "
        "https://huggingface.co/a/b/resolve/main/model.safetensors and its neighbours into a folder and give its path"
    )


def test_a_name_that_is_no_repository(places):
    with pytest.raises(CheckpointError, match="is not a name of a repository"):
        _fetch.hub_folder("a--b/c..d")


def test_a_file_that_is_too_large_is_another_one(places):
    path = places / "torch" / "checkpoints" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(20 + _fetch.NAMES))
    assert _fetch.official_file(SMALL, FILE) == path
    path.write_bytes(bytes(21 + _fetch.NAMES))
    with pytest.raises(CheckpointError, match=r"takes 20 and some names; it is another file"):
        _fetch.official_file(SMALL, FILE)


def test_a_hash_in_the_catalogue_is_checked(places):
    path = places / "torch" / "checkpoints" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(20))
    right = hashlib.sha256(bytes(20)).hexdigest()
    assert _fetch.official_file(replace(SMALL, sha256=right), FILE) == path
    with pytest.raises(CheckpointError, match="SHA-256 is not 0000"):
        _fetch.official_file(replace(SMALL, sha256="0" * 64), FILE)


def test_the_hub_says_the_hash_of_a_file_in_its_cache(places):
    """huggingface_hub names a large file by its SHA-256, and links to it."""
    entry = Entry("facebook/dinov2-small", "hf", "vits14", 5)
    snapshot = cache(places, entry.name, {})
    blob = snapshot.parents[1] / "blobs" / hashlib.sha256(bytes(20)).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(bytes(20))
    link = snapshot / "model.safetensors"
    link.symlink_to(blob)
    _fetch.check_file(link, entry)
    blob.write_bytes(bytes(19) + b"x")
    with pytest.raises(
        CheckpointError, match=rf"SHA-256 is not {blob.name}, that of facebook/dinov2-small; remove {blob}"
    ):
        _fetch.check_file(link, entry)
    blob = blob.rename(blob.with_name("0" * 40))  # git's hash of a small file is of another kind
    link.unlink()
    link.symlink_to(blob)
    _fetch.check_file(link, entry)

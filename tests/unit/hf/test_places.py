# SPDX-License-Identifier: Apache-2.0
"""What is not there is said at once, in our words; and the hub is asked once."""

import json
import socket
import time

import pytest

pytest.importorskip("transformers")

import huggingface_hub
import transformers
from huggingface_hub import constants

import opendino
from opendino import hf
from opendino.errors import CheckpointError, OpendinoError
from opendino.hf._places import base_of, reached
from opendino.hf.errors import BrokenFileError, MissingFilesError

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
MODELS = [hf.AutoModel, hf.AutoModelForImageClassification, hf.AutoBackbone]
ALL = [hf.AutoConfig, hf.AutoImageProcessor, *MODELS]
PUBLISHED = "facebook/dinov2-with-registers-giant"


def write(folder, without=()):
    hf.Dinov2Model(hf.Dinov2Config(**TINY)).save_pretrained(folder)
    hf.Dinov2ImageProcessor(size=64, crop_size=56).save_pretrained(folder)
    for name in without:
        (folder / name).unlink()
    return folder


@pytest.fixture
def attempts(monkeypatch):
    """No network: each attempt to connect is written down and fails at once, and nobody waits to try again."""
    made = []

    def fail(host, *args, **kwargs):
        made.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for module in (constants, transformers.utils.hub):
        for name in ("HF_HUB_OFFLINE", "_is_offline_mode"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, False)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return made


@pytest.fixture
def one_round(attempts, tmp_path):
    """How often huggingface_hub tries when it is asked for one file."""
    with pytest.raises(OSError, match=r"check your connection|Internet connection"):
        huggingface_hub.hf_hub_download(PUBLISHED, "config.json", cache_dir=tmp_path / "none")
    rounds = len(attempts)
    attempts.clear()
    assert rounds >= 2
    return rounds


@pytest.mark.parametrize("ask", [*ALL, hf.Dinov2WithRegistersModel, hf.Dinov2ImageProcessor])
def test_the_hub_is_asked_once(ask, one_round, attempts, tmp_path):
    with pytest.raises(MissingFilesError, match=f"{PUBLISHED}: .*config.json is not in {tmp_path}/cache and cannot"):
        ask.from_pretrained(PUBLISHED, cache_dir=tmp_path / "cache")
    assert 1 <= len(attempts) <= one_round


@pytest.mark.parametrize("files", [(), ("config.json",), ("config.json", "model.safetensors")])
def test_opendino_load_asks_once(files, one_round, attempts, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    if files:
        folder = put_into_cache(tmp_path / "cache", "someone/theirs", write(tmp_path / "there"))
        for path in folder.iterdir():
            if path.name not in files:
                path.unlink()
    if len(files) == 2:  # what is missing is told of, and done without
        assert opendino.load("someone/theirs").depth == 1
    else:
        with pytest.raises(CheckpointError, match=r"someone/theirs: no such file or folder; .*cannot be downloaded"):
            opendino.load("someone/theirs")
    assert 1 <= len(attempts) <= one_round


def put_into_cache(cache, repository, folder):
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    (home / "snapshots").mkdir()
    return folder.rename(home / "snapshots" / "abc")


def test_what_is_in_the_cache_opens_after_asking_once(one_round, attempts, tmp_path):
    put_into_cache(tmp_path / "cache", "someone/theirs", write(tmp_path / "there"))
    for ask in (hf.AutoModel, hf.AutoConfig, hf.AutoImageProcessor):
        ask.from_pretrained("someone/theirs", cache_dir=tmp_path / "cache")
        assert 1 <= len(attempts) <= one_round
        attempts.clear()
    with pytest.raises(MissingFilesError, match="does not answer"):
        hf.AutoModel.from_pretrained("someone/theirs", cache_dir=tmp_path / "cache", force_download=True)
    assert 1 <= len(attempts) <= one_round


def test_the_base_model_of_an_adapter_is_asked_for_once(one_round, attempts, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": PUBLISHED}))
    with pytest.raises(MissingFilesError, match=f"^{PUBLISHED}: config.json is not in"):
        hf.AutoModel.from_pretrained(adapter, cache_dir=tmp_path / "cache")
    assert 1 <= len(attempts) <= one_round
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "./gone"}))
    with pytest.raises(MissingFilesError, match=r"adapter: its base model \./gone is not there; write its place into"):
        hf.AutoModel.from_pretrained(adapter)
    assert base_of(adapter, {}) == "./gone"


@pytest.mark.parametrize("ask", ALL)
@pytest.mark.parametrize(
    "name", ["./nofolder", "../nofolder", "/abs/nofolder", "~/x", "a/b/c", "nofolder/", "x.pth", "a/x.safetensors"]
)
def test_a_path_is_never_a_repository(ask, name, attempts):
    with pytest.raises(MissingFilesError, match=r"^\S+: no such file or folder; give a folder") as caught:
        ask.from_pretrained(name)
    assert str(caught.value).startswith(f"{name}: ")
    assert not attempts


def test_a_name_alone_may_be_either(attempts, tmp_path):
    with pytest.raises(MissingFilesError) as caught:
        hf.AutoModel.from_pretrained("nofolder", cache_dir=tmp_path)
    assert str(caught.value).startswith("nofolder: no such folder here, and as a repository it cannot be had (https://")
    with pytest.raises(MissingFilesError, match=r"did you mean facebook/dinov2-base\?$"):
        hf.AutoModel.from_pretrained("facebook/dinov2-bse", cache_dir=tmp_path)


def test_when_the_hub_answers_all_is_as_ever(monkeypatch, tmp_path):
    class NotFound(huggingface_hub.errors.HfHubHTTPError):
        def __init__(self):
            Exception.__init__(self, "404")
            self.response = None

    def answer(*args, **kwargs):
        raise NotFound

    monkeypatch.setattr("opendino.hf._places.get_hf_file_metadata", answer)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with reached("a/b", "config.json", {"revision": "x"}) as arguments:
        assert arguments == {"revision": "x"}
    with reached(None, "config.json", {}) as arguments:
        assert arguments == {}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    put_into_cache(tmp_path, "a/b", write(tmp_path / "there"))
    with reached("a/b", "config.json", {"cache_dir": str(tmp_path)}) as arguments:
        assert arguments["local_files_only"]


LACKS = {
    "empty": (("config.json", "model.safetensors", "preprocessor_config.json"), "holds no config.json; put the one"),
    "weights alone": (("config.json", "preprocessor_config.json"), "holds no config.json; put the one"),
    "no weights": (("model.safetensors",), "holds no weights; looked for model.safetensors, model.safetensors.index"),
}


@pytest.mark.parametrize("what", list(LACKS))
@pytest.mark.parametrize("ask", [*MODELS, hf.Dinov2Model, hf.AutoConfig])
def test_folders_that_lack_something(what, ask, attempts, tmp_path):
    without, message = LACKS[what]
    folder = write(tmp_path / "empty", without)  # transformers 4 takes "empty" for a model of the type "mpt"
    if (ask, what) == (hf.AutoConfig, "no weights"):
        assert ask.from_pretrained(folder).hidden_size == 32
        return
    with pytest.raises(MissingFilesError, match=rf"empty: {message}") as caught:
        ask.from_pretrained(folder)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, ValueError)
    assert not attempts


def test_a_folder_without_settings_of_images(tmp_path):
    folder = write(tmp_path / "x", ["preprocessor_config.json"])
    for ask in (hf.AutoImageProcessor, hf.Dinov2ImageProcessor):
        with pytest.raises(MissingFilesError, match=r"x: holds no preprocessor_config\.json; put the one"):
            ask.from_pretrained(folder)
    with pytest.raises(MissingFilesError, match=r"x/sub: holds no config\.json"):
        hf.AutoModel.from_pretrained(folder, subfolder="sub")


@pytest.mark.parametrize("ask", ALL)
@pytest.mark.parametrize(("content", "message"), [("{nope", "is no JSON"), ("[1]", "holds a list; wanted a JSON")])
def test_files_that_are_no_json(ask, content, message, tmp_path):
    folder = write(tmp_path)
    file = "preprocessor_config.json" if ask is hf.AutoImageProcessor else "config.json"
    (folder / file).write_text(content)
    with pytest.raises(BrokenFileError, match=rf"{file}: {message}") as caught:
        ask.from_pretrained(folder)
    assert isinstance(caught.value, OSError | ValueError)
    assert isinstance(caught.value, OpendinoError)


def test_a_config_in_hand_needs_no_file(tmp_path):
    folder = write(tmp_path, ["config.json"])
    assert hf.AutoModel.from_pretrained(folder, config=hf.Dinov2Config(**TINY)).config.hidden_size == 32

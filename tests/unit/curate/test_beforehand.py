# SPDX-License-Identifier: Apache-2.0
import warnings

import pytest
import torch

from opendino.config import load
from opendino.curate import _beforehand
from opendino.curate._embedders import open_embedder
from opendino.curate.pipeline import CurateConfig, run
from opendino.errors import CheckpointError, ConfigError, OpendinoError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["queries=[nowhere]"], "nowhere: there is no such file or folder"),
        (["references=[{0}/no-*.tar]"], r"no-\*.tar: there is no such file or folder"),
        (["index.sources=[]"], "index.sources: names nothing"),
        (["embed.model="], "embed.model: names nothing"),
        (["copy.model="], "copy.model: names nothing"),
        (["embed.model={0}/gone"], "embed.model = .*gone: .*no such file or folder"),
        (["embed.model=dinov2_vits15"], "did you mean dinov2_vits14"),
        (["embed.model={0}"], "embed.model = .*: holds no weights"),
        (["copy.model=torchscript:{0}/sscd.pt"], "copy.model = torchscript.*copy.run_code=true"),
        (["copy.model=torchscript:{0}/sscd.pt", "copy.run_code=true"], "cannot be opened as TorchScript"),
        (["copy.model=nothing:x"], "copy.model = nothing:x"),
        (["mix.parts=[retrieve]"], "retrieve selects nothing without queries="),
        (["mix.parts=[decontaminate]"], "decontaminate selects nothing without references="),
        (["mix.parts=[balance,prune]"], "prune selects nothing while prune.eps = 0"),
        (["mix.parts=['set:elsewhere']"], "set:elsewhere is no source of this index; there are "),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_is_told_before_any_work(tmp_path, picture_folder, words, message, workers):
    (tmp_path / "models").mkdir()
    words = [word.format(tmp_path / "models") for word in words]
    base = [f"out={tmp_path / 'out'}", f"index.sources=[{picture_folder}]", "embed.model=thumbnail",
            f"engine.workers={workers}"]  # fmt: skip
    with pytest.raises(OpendinoError, match=message):
        run(load(CurateConfig, None, [*base, *words]))
    assert not (tmp_path / "out").exists()


def test_a_model_that_gives_no_features_is_told_before_any_work(tmp_path, picture_folder):
    class Wrong(torch.nn.Module):
        def forward(self, images):
            return images.mean()

    path = tmp_path / "wrong.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit
        torch.jit.script(Wrong()).save(str(path))
    words = [f"out={tmp_path / 'out'}", f"index.sources=[{picture_folder}]", "embed.model=thumbnail",
             f"copy.model=torchscript:{path}", "copy.run_code=true"]  # fmt: skip
    with pytest.raises(OpendinoError, match="gives no matrix"):
        run(load(CurateConfig, None, words))
    assert not (tmp_path / "out").exists()


def test_a_finished_stage_needs_no_model_opened(tmp_path, picture_folder, monkeypatch):
    words = [f"out={tmp_path}", f"index.sources=[{picture_folder}]"]
    config = load(CurateConfig, None, words)
    run(config, until="dedup")
    monkeypatch.setattr(_beforehand, "stack", None)
    _beforehand.check(config, embeds=False, copies=True)
    with pytest.raises(TypeError):
        _beforehand.check(load(CurateConfig, None, [*words, "embed.model=thumbnail"]), embeds=True, copies=True)


def test_a_model_is_not_kept_where_others_work(tmp_path, picture_folder):
    words = [f"out={tmp_path}", f"index.sources=[{picture_folder}]", "embed.model=thumbnail"]
    for workers, kept in ((1, 2), (2, 0)):
        open_embedder.cache_clear()
        config = load(CurateConfig, None, [*words, "copy.threads=1", f"engine.workers={workers}"])
        _beforehand.check(config, embeds=True, copies=True)
        assert open_embedder.cache_info().currsize == kept


def test_sizes_are_compared_with_what_is_left():
    config = load(CurateConfig, None, ["balance.size=10", "balance.copies=2", "cluster.levels=[6,2]"])
    _beforehand.check_sizes(config, 6)
    with pytest.raises(ConfigError, match="6 clusters of 5 images"):
        _beforehand.check_sizes(config, 5)
    with pytest.raises(ConfigError, match="at most 2 times each; give 8 or less"):
        _beforehand.check_sizes(config, 4)
    _beforehand.check_sizes(config, 0)  # of none at all the stages say why


def test_the_kind_of_error_stays(tmp_path, picture_folder):
    words = [f"out={tmp_path / 'out'}", f"index.sources=[{picture_folder}]", f"embed.model={tmp_path / 'none.pth'}"]
    with pytest.raises(CheckpointError):
        run(load(CurateConfig, None, words))

# SPDX-License-Identifier: Apache-2.0
import signal

import pytest

from opendino.cli.main import main
from opendino.train import pretrain as module
from opendino.train.loop import Stopped


def test_what_was_chosen_is_printed_with_reasons(picture_folder, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        module, "pretrain", lambda config, chosen, dataset: seen.append((config, chosen)) or outcome(tmp_path)
    )
    words = [f"data={picture_folder}", f"output_dir={tmp_path / 'run'}", "train.device=cpu", "crops.local_number=3"]
    assert main(["pretrain", *words]) == 0
    ((config, chosen),) = seen
    lines = capsys.readouterr().out.splitlines()
    assert "chosen for this data and this machine (key=value overrides):" in lines
    assert any(line.split()[:2] == ["crops.global_size", "24"] and "24 pixels" in line for line in lines)
    assert not any("crops.local_number" in line for line in lines)
    assert config.crops.local_number == 3
    assert chosen["crops.global_size"] == config.crops.global_size == 24
    assert f"training in {tmp_path / 'run'}" in lines


def outcome(folder):
    return module.Outcome(folder, 20, 160, 61.0, {"knn/top1_k20": 33.333, "health/effective_rank": None})


def test_the_outcome(tiny_words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "pretrain", lambda config, chosen, dataset: outcome(tmp_path))
    assert main(["pretrain", *tiny_words]) == 0
    shown = capsys.readouterr().out
    assert "done: 20 steps, 160 images seen, 1:01 this time" in shown
    assert "33.33" in shown
    assert "health/effective_rank         not finite\n" in shown
    data = tiny_words[0].removeprefix("data=")
    assert f"opendino view pca {tmp_path} {data}" in shown
    assert f"opendino eval health {tmp_path} data={data}" in shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(tiny_words, monkeypatch, capsys, number, code):
    def stop(config, chosen, dataset):
        raise Stopped(number)

    monkeypatch.setattr(module, "pretrain", stop)
    assert main(["pretrain", *tiny_words]) == code
    assert "the same command continues" in capsys.readouterr().err


def test_one_recipe(tiny_words, capsys):
    assert main(["pretrain", "vit_tiny_cifar10", "vitl16_in1k_short", *tiny_words]) == 2
    assert "at most 1" in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.cli.distill import spelled_out
from opendino.cli.main import main
from opendino.config import load
from opendino.errors import ConfigError
from opendino.train.distill import DistillRunConfig


def test_short_words_stand_for_settings():
    words = spelled_out(["teacher=runs/big", "student=vitb14", "teacher.momentum=[0.9,1.0]", "seed=1"])
    config = load(DistillRunConfig, None, words)
    assert (config.distill.teacher, config.student.preset, config.teacher.momentum) == (
        "runs/big",
        "vitb14",
        (0.9, 1.0),
    )


def test_of_several_students_the_first_is_the_runs():
    config = load(DistillRunConfig, None, spelled_out(["students=[vits14, {preset: vit_custom, embed_dim: 64}]"]))
    assert config.student.preset == "vits14"
    assert [(also.preset, also.embed_dim) for also in config.distill.also] == [("vit_custom", 64)]
    config = load(DistillRunConfig, None, spelled_out(["students=[{preset: vit_custom, depth: 3}]"]))
    assert (config.student.preset, config.student.depth, config.distill.also) == ("vit_custom", 3, ())


@pytest.mark.parametrize("word", ["students=vits14", "students=[]", "students=[1]"])
def test_students_that_are_no_list_are_refused(word):
    with pytest.raises(ConfigError, match=r"wanted a list of presets, such as students=\[vits14, vitb14\]"):
        spelled_out([word])


def test_it_says_what_it_chose_trains_and_says_where_the_weights_are(tiny_words, tmp_path, capsys):
    from opendino.checkpoint.weights import save_weights
    from opendino.models.presets import create

    teacher = save_weights(create("vit_nano4", depth=1), tmp_path / "teacher")
    small = ["train.iterations=2", "watch.every=0"]
    assert main(["distill", f"teacher={teacher}", *tiny_words, *small]) == 0
    shown = capsys.readouterr().out
    assert "distill.targets" in shown
    assert "done: 2 steps" in shown
    assert f"weights: {tmp_path / 'run' / 'weights'}" in shown


def test_without_a_teacher_one_sentence_and_exit_code_2(picture_folder, tmp_path, capsys):
    assert main(["distill", f"data={picture_folder}", f"output_dir={tmp_path / 'run'}", "train.device=cpu"]) == 2
    assert capsys.readouterr().err == (
        "error: distill.teacher is missing: give teacher=RUN, a run folder or anything that opendino.load takes\n"
    )
    assert not (tmp_path / "run").exists()

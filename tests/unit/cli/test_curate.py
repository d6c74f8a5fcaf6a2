# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.cli.curate import main
from opendino.cli.main import main as command
from opendino.errors import ConfigError


def test_a_stage_is_named_and_said(tmp_path, picture_folder, capsys):
    assert main(["index", f"index.sources=[{picture_folder}]", f"out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("index          images 40  usable 40")
    assert f"written: {tmp_path / 'index'}" in said


def test_a_wrong_stage_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean cluster"):
        main(["clustr", "recipe.yaml"])
    with pytest.raises(ConfigError, match="did you mean dedup"):
        main(["dedupp", "out=x"])


def test_a_shipped_recipe_is_found_by_its_name():
    with pytest.raises(ConfigError, match="out: names no folder"):
        main(["balance_2levels", "embed.model=thumbnail"])


def test_help_tells_the_stages(capsys):
    assert command(["curate", "--help"]) == 0
    assert "decontaminate" in capsys.readouterr().out

# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.cli import eval as verb
from opendino.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "^opendino eval: name a protocol; the protocols are knn, linear, logreg"),
        (["nothing"], "^opendino eval nothing: no such protocol; the protocols are knn, linear, logreg"),
        (["kn"], "did you mean knn"),
        (["knn"], "name a model"),
        (["knn", "m", "knn.kk=3"], r"knn.kk: no such setting; did you mean knn.k\?"),
        (["knn", "m", "output_dir=x"], r"^output_dir: no such setting; did you mean out\?"),
        (["knn", "m", "knn.k=[0]"], r"knn.k = \[0\]"),
        (["knn", "m", "nowhere.yaml"], "no such recipe"),
        (["knn", "m", "--fast"], "no such option"),
    ],
)
def test_words_that_do_not_fit(words, message):
    with pytest.raises(ConfigError, match=message):
        verb.main(words)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        verb.main(["health", str(tmp_path / "nowhere"), "data=x"])

# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.errors import ConversionError
from opendino.models.chunks import fold_chunks


def test_fold_chunks_changes_block_names_only():
    state = {"blocks.0.1.norm1.weight": 1, "blocks.2.mlp.fc1.weight": 2, "norm.weight": 3, "my.blocks.0.1.x": 4}
    assert fold_chunks(state) == {
        "blocks.1.norm1.weight": 1,
        "blocks.2.mlp.fc1.weight": 2,
        "norm.weight": 3,
        "my.blocks.0.1.x": 4,
    }
    assert fold_chunks(state, "my.")["my.blocks.1.x"] == 4
    with pytest.raises(ConversionError, match=r"both become blocks\.1\.norm1\.weight"):
        fold_chunks({"blocks.0.1.norm1.weight": 1, "blocks.1.norm1.weight": 2})

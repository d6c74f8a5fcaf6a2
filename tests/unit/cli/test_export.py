# SPDX-License-Identifier: Apache-2.0
import jaxtyping
import pytest

from opendino.checkpoint.weights import save_weights
from opendino.cli import export
from opendino.errors import ConfigError
from opendino.models.vision_transformer import VisionTransformer


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_and_what_was_compared(tmp_path, capsys):
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1), tmp_path / "w")
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert export.main([str(tmp_path / "w"), "--to", "trace", str(tmp_path / "x.pt"), "size=[16, 8]"]) == 0
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("noise of 3 x 16 x 8: largest difference")
    assert told[-1] == f"written: {tmp_path / 'x.pt'} (trace; cls, patches)"


@pytest.mark.parametrize("words", [[], ["m", "x.pt"], ["m", "to=onnx"]])
def test_what_is_missing(words):
    with pytest.raises(ConfigError, match="wanted MODEL --to"):
        export.main(words)

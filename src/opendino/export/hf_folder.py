# SPDX-License-Identifier: Apache-2.0
"""A folder for the Hugging Face hub: weights, config, image processor, and a card; weights by `checkpoint/conversion`.

Where transformers is installed, its own class opens the folder too and has to give the same features.
"""

import importlib.util
import shutil
from pathlib import Path

import torch

from opendino.checkpoint.conversion import ConvertConfig, convert, fixed_image
from opendino.checkpoint.hub import load, load_backbone
from opendino.errors import ConversionError
from opendino.export.card import card
from opendino.export.graph import backbone_of
from opendino.export.shipping import Difference, ExportConfig, Exported
from opendino.files import write_whole


def write(source: str, out: Path, config: ExportConfig) -> Exported:
    """Convert, add the card, and compare with transformers' own model.

    Raises:
        ConversionError: transformers computes something else; the folder is removed.
    """
    allowed = config.allowed
    report = convert(source, out, ConvertConfig(to="hf", tolerance=allowed))
    differences = [Difference((1, 0, *report.size), "features", report.difference)]
    try:
        if importlib.util.find_spec("transformers") is not None:
            differences.append(_by_transformers(out))
            if not differences[-1].largest <= allowed:
                raise ConversionError(
                    f"{out}: transformers computes features that differ by {differences[-1].largest:.1e}, more than "
                    f"tolerance={allowed:g}; nothing was written"
                )
        write_whole(out / "README.md", card(load(source), source, differences))
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    outputs = ("last_hidden_state", "pooler_output")
    return Exported(out, outputs, differences)


@torch.no_grad()
def _by_transformers(folder: Path) -> Difference:
    """Transformers' own class against ours, both from the folder, with the folder's rule for positions."""
    from transformers import AutoModel

    # At the size of the table no rule resizes: what is left is the model itself.
    backbone = load_backbone(folder)
    side = tuple(n * backbone.patch_size for n in backbone.grid)
    image = torch.nn.functional.interpolate(fixed_image(backbone), size=side, mode="nearest")
    theirs = AutoModel.from_pretrained(str(folder)).eval()(image).last_hidden_state
    ours = backbone_of(backbone).forward_features(image)
    found = torch.cat([ours["x_norm_clstoken"][:, None], ours["x_norm_regtokens"], ours["x_norm_patchtokens"]], dim=1)
    return Difference(tuple(image.shape), "last_hidden_state", float((theirs - found).abs().max()))

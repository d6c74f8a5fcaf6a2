# SPDX-License-Identifier: Apache-2.0
"""`opendino view`: pictures of what a backbone sees."""

import difflib
from importlib import import_module

from opendino.cli._words import split
from opendino.errors import ConfigError

SUMMARY = "make pictures of what a backbone sees: PCA of patch features"
USAGE = """
usage: opendino view pca MODEL IMAGES ... [out=pca.png] [key=value ...]

pca     the paper's picture: the first principal component of the patch features finds the foreground, the next three
        colour it; all images share the components, so equal colours mean equal features

MODEL   a run folder, a weights folder, or a .pth or .safetensors file with official names
IMAGES  image files, folders, or other data sets (the first 12 pictures, spread over each; images=N takes N)

Some settings:
  size=448 (longer side the model sees) background=keep joint=false threshold=0.5 components=[1,2,3] smooth=true
  value_range=[0,4095] (by default images are decoded as the run decoded its own)
"""


def main(argv: list[str]) -> int:
    """Make the picture and say where it is."""
    names, words = split(argv, most=len(argv))
    from opendino.view import PICTURES

    picture = names[0] if names else ""
    if picture not in PICTURES:
        close = difflib.get_close_matches(picture, PICTURES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the pictures are {', '.join(PICTURES)}"
        raise ConfigError(f"opendino view {picture}: no such picture; {hint}")
    if len(names) < 3:
        raise ConfigError(f"opendino view {picture}: name a model, then at least one image or folder; see --help")

    from opendino import logs
    from opendino.checkpoint.hub import load_backbone
    from opendino.cli._decoding import decoding_of
    from opendino.config import load as load_config

    logs.setup()
    place, config_class, _ = PICTURES[picture]
    module = import_module(place)
    config = load_config(getattr(module, config_class), None, words, decoding_of(names[1]))
    print(f"written: {module.run(load_backbone(names[1]), names[2:], config)}")
    return 0

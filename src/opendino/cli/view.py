# SPDX-License-Identifier: Apache-2.0
"""`opendino view`: pictures of what a backbone sees."""

from pathlib import Path

from opendino.cli._words import split
from opendino.errors import ConfigError

SUMMARY = "pictures of what a backbone sees: PCA, attention, matches, similar patches, a map"
USAGE = """
usage: opendino view PICTURE MODEL IMAGES ... [out=FILE] [key=value ...]

pca        the paper's picture: the first principal component of the patch features finds the foreground, the next three
           colour it; all images share the components, so equal colours mean equal features
attention  where the class token looks, by heads and by rollout; token=registers, layer=5, mass=0.6
match      patches of the first image and of each other one that are each other's most similar, joined by lines
similar    the cosine of every patch with one spot of the first image: points=[[0.3,0.5],[0.8,0.2]], x and y from 0 to 1
embedding  a data set as a map of thumbnails: method=tsne or pca, grid=true, images=400

MODEL   a run folder, a weights folder, a .pth or .safetensors file with official names, or a published name
IMAGES  image files, folders, or other data sets (the first 12 pictures, spread over each; images=N takes N)

FILE is a PNG; a name that ends in .html makes a page that holds its pictures. Some settings:
  size=518 (longer side the model sees; by default twice the model's own, and 32 patches or more where the image has
  the pixels) side=336 (of each panel) smooth=false device=cpu
  pca: background=keep joint=false threshold=0.5 components=[1,2,3]
  match: count=30 spacing=2 foreground=false threshold=0.5
  value_range=[0,4095] (by default images are decoded as the run decoded its own)
"""


def main(argv: list[str]) -> int:
    """Make the picture and say where it is."""
    names, words = split(argv, most=len(argv))
    from opendino.view import made_by

    picture = names[0] if names else ""
    module, config_class = made_by(picture)
    if len(names) < 3:
        raise ConfigError(f"view {picture}: name a model, then at least one image or folder; see --help")

    from opendino import logs
    from opendino.checkpoint.hub import load_backbone
    from opendino.cli._decoding import decoding_of
    from opendino.config import load as load_config
    from opendino.files import check_place

    logs.setup()
    config = load_config(config_class, None, words, decoding_of(names[1]))
    check_place(Path(config.out).parent, f"out = {config.out}")
    print(f"written: {module.run(load_backbone(names[1]), names[2:], config)}")
    return 0

# SPDX-License-Identifier: Apache-2.0
"""What is where, from frozen patches: a linear head, and PCA maps that need no labels at all.

    python examples/segment_and_look.py runs/mine data/train data/val pictures

A part of the data is a folder with `images/` and `masks/` whose files share their names; the numbers in a mask are
classes, 255 does not count. Each image of `data/val` becomes a picture: the image, its PCA map, the truth, the guess.
`opendino eval segment` is the published protocol, with augmentation, sliding windows and 40,000 steps.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import opendino
from opendino.eval.segment import MaskedConfig, SegmentConfig, open_parts
from opendino.layers.segmentation_head import SegmentationHead
from opendino.models.vision_transformer import VisionTransformer
from opendino.view import pca

VOID = -1  # what `open_parts` makes of pixels that do not count


def patch_maps(backbone: VisionTransformer, image) -> Tensor:
    """Patch features of one image as a map [1, D, h, w]."""
    return pca.patch_features(backbone, image).permute(2, 0, 1)[None]


def train_head(maps: list[Tensor], masks: list[Tensor], classes: int, steps: int = 300) -> SegmentationHead:
    """Batch normalisation and a 1x1 convolution; the map is enlarged to the mask, image after image."""
    torch.manual_seed(0)
    head = SegmentationHead(maps[0].shape[1], classes).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1e-4)
    for step in range(steps):
        one = step % len(maps)
        logits = F.interpolate(head([maps[one]]), masks[one].shape, mode="bilinear")
        loss = F.cross_entropy(logits, masks[one][None], ignore_index=VOID)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


def mean_iou(guesses: list[Tensor], masks: list[Tensor], classes: int) -> float:
    """Intersection over union, a mean over the classes that occur."""
    guess, truth = (torch.cat([one.flatten() for one in many]) for many in (guesses, masks))
    guess, truth = guess[truth != VOID], truth[truth != VOID]
    counts = torch.bincount(truth * classes + guess, minlength=classes**2).view(classes, classes).double()
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    return float((counts.diag() / union)[union > 0].mean())


def coloured(classes: np.ndarray) -> Image.Image:
    """A fixed colour for each class."""
    palette = np.random.default_rng(3).integers(40, 256, (256, 3), dtype=np.uint8)
    palette[VOID] = 0  # the last row
    return Image.fromarray(palette[classes])


def main(model: str, train: str, val: str, out: str, steps: int = 300) -> float:
    backbone = opendino.load(model)
    *parts, classes = open_parts(SegmentConfig(data=MaskedConfig(train=train, val=val)), backbone.in_chans)
    pairs = [[part.both(row) for row in range(len(part))] for part in parts]
    images = [[image for image, _ in many] for many in pairs]
    masks = [[torch.from_numpy(mask) for _, mask in many] for many in pairs]
    maps = [[patch_maps(backbone, image) for image in many] for many in images]
    head = train_head(maps[0], masks[0], classes, steps)
    guesses, folder = [], Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    colours = pca.colour_maps([one[0].permute(1, 2, 0) for one in maps[1]])
    for row, (image, mask) in enumerate(zip(images[1], masks[1], strict=True)):
        with torch.inference_mode():
            logits = F.interpolate(head([maps[1][row]]), mask.shape, mode="bilinear")
        guesses.append(logits[0].argmax(0))
        row_of = [
            pca.shown(image),
            pca.paint(image, colours[row]),
            coloured(mask.numpy()),
            coloured(guesses[-1].numpy()),
        ]
        sheet = Image.new("RGB", (4 * row_of[0].width, row_of[0].height))
        for place, picture in enumerate(row_of):
            sheet.paste(picture.resize(row_of[0].size, Image.Resampling.NEAREST), (place * row_of[0].width, 0))
        sheet.save(folder / f"{row:04}.png")
    return mean_iou(guesses, masks[1], classes)


if __name__ == "__main__":
    print(f"mean IoU {main(*sys.argv[1:5]):.1%}; pictures in {sys.argv[4]}")

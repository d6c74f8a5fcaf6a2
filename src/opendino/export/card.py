# SPDX-License-Identifier: Apache-2.0
"""The page that a model is published with: what it is, how it is used, what was checked."""

from collections.abc import Sequence

from opendino import __version__
from opendino.checkpoint.hub import Model
from opendino.export.graph import backbone_of
from opendino.export.shipping import Difference, told
from opendino.models.classifier import LinearClassifier

_PAGE = """\
---
library_name: transformers
pipeline_tag: {task}
tags: [dinov2, self-supervised, vision]
---

# {title}

A DINOv2 vision transformer, written by opendino {version} from `{source}`.

| | |
|---|---|
| parameters | {parameters:.1f} M |
| width, blocks, heads | {width}, {depth}, {heads} |
| patch, registers | {patch} pixels, {registers} |
| position table | {table} pixels |
| images | {channels} channels, mean {mean}, deviation {std} |

## Use

```python
from transformers import AutoImageProcessor, {auto}   # or from opendino.hf

processor = AutoImageProcessor.from_pretrained("THIS_FOLDER")
model = {auto}.from_pretrained("THIS_FOLDER")
outputs = model(**processor(images=image, return_tensors="pt"))
```

## Checked

{checks}

## To be filled in by its author

Training data and their licence, intended use, limits, results. Nothing is claimed here that was not measured.
"""


def card(model: Model, source: str, differences: Sequence[Difference]) -> str:
    """The text of README.md.

    Args:
        model: what is published.
        source: where it came from, as it was named.
        differences: what the comparisons came to.
    """
    backbone, classifies = backbone_of(model), isinstance(model, LinearClassifier)
    spec = model.input_spec
    checks = "\n".join(f"- {line}" for line in told(differences))
    return _PAGE.format(
        task="image-classification" if classifies else "image-feature-extraction",
        title=source.rstrip("/").rpartition("/")[2],
        version=__version__,
        source=source,
        parameters=sum(one.numel() for one in model.parameters()) / 1e6,
        width=backbone.embed_dim,
        depth=backbone.depth,
        heads=backbone.num_heads,
        patch=backbone.patch_size,
        registers=backbone.num_register_tokens or "none",
        table=" x ".join(str(side * backbone.patch_size) for side in backbone.grid),
        channels=spec.channels,
        mean=list(spec.mean),
        std=list(spec.std),
        auto="AutoModelForImageClassification" if classifies else "AutoModel",
        checks=checks,
    )

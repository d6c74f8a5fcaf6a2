# SPDX-License-Identifier: Apache-2.0
"""`register()` in a process of its own: it changes transformers for the whole process, and importing does not."""

import subprocess
import sys

import pytest

transformers = pytest.importorskip("transformers")

CODE = """
import sys
import numpy as np
import transformers
from PIL import Image
from opendino import hf

folder = sys.argv[1]
fields = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, num_labels=3)
hf.Dinov2ForImageClassification(hf.Dinov2Config(**fields)).save_pretrained(folder)
hf.Dinov2ImageProcessor(size=64, crop_size=56).save_pretrained(folder)

def home(thing):
    return type(thing).__module__.split(".")[0]

before = transformers.AutoModel.from_pretrained(folder), transformers.AutoImageProcessor.from_pretrained(folder)
print("before", *(home(one) for one in before))
hf.register()
hf.register()
config = transformers.AutoConfig.from_pretrained(folder)
model = transformers.AutoModel.from_pretrained(folder)
classifier = transformers.AutoModelForImageClassification.from_pretrained(folder)
backbone = transformers.AutoBackbone.from_config(config)
print("after", home(config), home(model), home(classifier), home(backbone))
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3)).astype(np.uint8))
features = transformers.pipeline("image-feature-extraction", model=folder)
inputs = hf.AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
same = np.abs(np.array(features(image)) - model(**inputs).last_hidden_state.detach().numpy()).max() < 1e-5
print("features", home(features.model), same)
classes = transformers.pipeline("image-classification", model=folder)
print("classes", home(classes.model), len(classes(image)))

if transformers.__version__.startswith("4."):
    sys.exit()  # it takes image processors from its own list first
for family in ("Dinov2", "Dinov2WithRegisters"):
    getattr(transformers, family + "Config")(**fields).save_pretrained(folder)
    auto = [transformers.AutoImageProcessor.from_pretrained(folder, backend=b) for b in (None, "pil", "torchvision")]
    print("images", *(home(one) for one in auto), *(one.backend for one in auto[1:]))
want = hf.Dinov2ImageProcessor(size=64, crop_size=56)(image, return_tensors="np").pixel_values
print("pixels", np.array_equal(auto[1](image, return_tensors="np").pixel_values, want), home(features.image_processor))
transformers.HieraConfig().save_pretrained(folder)
print("others", home(transformers.AutoImageProcessor.from_pretrained(folder)))
"""


def test_register_is_asked_for_and_works(tmp_path):
    run = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.split("\n")[:-1]
    assert lines[:4] == [
        "before transformers transformers",
        "after opendino opendino opendino opendino",
        "features opendino True",
        "classes opendino 3",
    ]
    if not transformers.__version__.startswith("4."):
        assert lines[4:] == [
            "images opendino opendino opendino pil torch",
            "images opendino opendino opendino pil torch",
            "pixels True opendino",
            "others transformers",
        ]

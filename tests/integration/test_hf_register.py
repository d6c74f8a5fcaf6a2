# SPDX-License-Identifier: Apache-2.0
"""`register()` in a process of its own: it changes transformers for the whole process, and importing does not."""

import subprocess
import sys

import pytest

pytest.importorskip("transformers")

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

print("before", home(transformers.AutoModel.from_pretrained(folder)))
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
"""


def test_register_is_asked_for_and_works(tmp_path):
    run = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:-1] == [
        "before transformers",
        "after opendino opendino opendino opendino",
        "features opendino True",
        "classes opendino 3",
    ]

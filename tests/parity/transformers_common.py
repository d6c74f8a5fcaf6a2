# SPDX-License-Identifier: Apache-2.0
"""transformers' own common tests of models, configs, backbones and image processors, against our classes.

They are not in its wheel but in its source distribution. `make parity-common` fetches that and runs this file; by hand:

    pip download --no-deps --no-binary transformers transformers==5.23.0 && tar xf transformers-5.23.0.tar.gz
    pip install parameterized
    export TRANSFORMERS_SOURCE=transformers-5.23.0
    python -m pytest --noconftest -c /dev/null tests/parity/transformers_common.py

Without the variable everything is skipped. It is no part of the ordinary test suite: it takes minutes, and follows
the internals of one version.
"""

import importlib
import os
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SOURCE = Path(os.environ.get("TRANSFORMERS_SOURCE", "nowhere")).resolve()
if not (SOURCE / "tests" / "test_modeling_common.py").is_file():
    pytest.skip("TRANSFORMERS_SOURCE names no source distribution of transformers", allow_module_level=True)
sys.path.insert(0, str(SOURCE))

models, backbones, configs, processors = (
    importlib.import_module(f"tests.test_{name}_common")
    for name in ("modeling", "backbone", "configuration", "image_processing")
)

from opendino import hf  # noqa: E402

PICTURE = Path(tempfile.mkdtemp()) / "picture.png"
Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)).save(PICTURE)
processors.AutoImageProcessor = hf.AutoImageProcessor
processors.load_test_image = lambda _url: Image.open(PICTURE)


class Shape:
    """What the mixins ask of a `model_tester`: 15 x 15 patches, width 32, two blocks."""

    def __init__(self, parent, registers=False, swiglu=False):
        self.parent, self.registers, self.swiglu = parent, registers, swiglu
        self.batch_size, self.image_size, self.patch_size, self.num_channels = 3, 30, 2, 3
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 4
        self.hidden_dropout_prob, self.is_training, self.num_labels = 0.0, True, 3
        self.mask_length, self.num_masks = 15 * 15, 112
        self.seq_length = 1 + 2 * registers + 15 * 15

    def get_config(self):
        names = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads")
        fields = {**{name: getattr(self, name) for name in names}, "mlp_ratio": 2, "use_swiglu_ffn": self.swiglu}
        return (
            hf.Dinov2WithRegistersConfig(num_register_tokens=2, **fields)
            if self.registers
            else hf.Dinov2Config(**fields)
        )

    def prepare_config_and_inputs(self):
        return self.get_config(), models.floats_tensor([self.batch_size, 3, 30, 30]), None

    def prepare_config_and_inputs_for_common(self):
        config, pixels, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixels}


class Models(models.ModelTesterMixin):
    test_resize_embeddings = False
    test_torch_exportable = True
    registers = swiglu = False

    def setUp(self):
        self.model_tester = Shape(self, self.registers, self.swiglu)
        config = type(self.model_tester.get_config())
        self.config_tester = configs.ConfigTester(self, config_class=config, has_text_modality=False, hidden_size=36)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("images have no inputs_embeds")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for cls in self.all_model_classes:
            model = cls(config)
            assert isinstance(model.get_input_embeddings(), torch.nn.Module)
            assert model.get_output_embeddings() is None or isinstance(model.get_output_embeddings(), torch.nn.Linear)

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        self.test_all_params_have_gradient = False  # the mask token has none without masks
        super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)


class TestPlain(Models, unittest.TestCase):
    all_model_classes = (hf.Dinov2Model, hf.Dinov2ForImageClassification, hf.Dinov2Backbone)


class TestGated(TestPlain):
    swiglu = True


class TestRegisters(Models, unittest.TestCase):
    registers = True
    all_model_classes = (
        hf.Dinov2WithRegistersModel,
        hf.Dinov2WithRegistersForImageClassification,
        hf.Dinov2WithRegistersBackbone,
    )


class TestPlainBackbone(backbones.BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (hf.Dinov2Backbone,)
    config_class = hf.Dinov2Config
    has_attentions = True

    def setUp(self):
        self.model_tester = Shape(self)


class TestRegistersBackbone(backbones.BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (hf.Dinov2WithRegistersBackbone,)
    config_class = hf.Dinov2WithRegistersConfig
    has_attentions = True

    def setUp(self):
        self.model_tester = Shape(self, registers=True)


class Fast(hf.Dinov2ImageProcessor):
    def __init__(self, **settings):
        super().__init__(**{**settings, "backend": "torch"})


class Exact(processors.ImageProcessingTester):
    fast = False

    def __init__(self, parent, **settings):
        small = {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}, "do_convert_rgb": True}
        statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        super().__init__(parent, **{**small, **statistics, "do_normalize": True, "do_resize": True, **settings})

    def _get_image_processing_classes(self):
        ours = {"pil": hf.Dinov2ImageProcessor}
        return {**ours, "torchvision": Fast} if self.fast else ours


class Both(Exact):
    fast = True


class TestExactProcessor(processors.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = Exact

    @unittest.skip("is about models inside transformers")
    def test_new_models_require_torchvision_backend(self):
        pass


class TestFastProcessor(processors.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = Both

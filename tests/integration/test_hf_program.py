# SPDX-License-Identifier: Apache-2.0
"""The documented program of the Hugging Face models, on local folders in the published layout; then torch.export.

The folders are written by transformers' own classes, so nothing of ours stands between the program and the layout.
"""

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import transformers

TINY = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 518, "patch_size": 14}
SIZES = [(98, 98), (224, 308), (518, 518)]


@pytest.fixture(autouse=True)
def _no_shape_checks():
    """Checks of shapes look at sizes, which tracers do not know."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=["Dinov2", "Dinov2WithRegisters"])
def folder(request, tmp_path):
    """Weights, config and image processor as transformers writes them."""
    config = getattr(transformers, f"{request.param}Config")(**TINY)
    getattr(transformers, f"{request.param}Model")(config).save_pretrained(tmp_path)
    processor = getattr(transformers, "BitImageProcessorPil", transformers.BitImageProcessor)
    processor(
        size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_program_runs_as_it_stands(folder):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8))

    from opendino.hf import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    inputs = processor(images=image, return_tensors="pt")
    outputs = model(**inputs)
    last_hidden_states = outputs[0]
    model.config.return_dict = False
    with torch.no_grad():
        traced = torch.jit.trace(model, [inputs.pixel_values])
        traced_outputs = traced(inputs.pixel_values)
    difference = (last_hidden_states - traced_outputs[0]).abs().max()
    print(difference)
    assert difference <= 1e-6
    assert type(model).__module__ == "opendino.hf.modeling"

    for size in SIZES:  # the trace holds for other sizes and batches
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            difference = (model(x)[0] - traced(x)[0]).abs().max().item()
        print("trace", size, difference)
        assert difference <= 5e-6


@pytest.mark.parametrize("switch", ["hf", "official", "timm"])
def test_export_with_dynamic_batch_and_size(folder, switch):
    from opendino.hf import AutoModel

    model = AutoModel.from_pretrained(folder, pos_embed_resize=switch)
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (torch.randn(2, 3, 224, 224),), dynamic_shapes=(dynamic,)).module()
    for rough, near in ((None, 5e-6), (1.0, 5e-5), (3.0, 5e-5)):  # a table of noise is the roughest there is
        if rough is not None:
            with torch.no_grad():
                model.embeddings.position_embeddings.normal_(std=rough)
            program.load_state_dict(model.state_dict())
        for batch, size in zip((1, 3, 2), SIZES, strict=True):
            x = torch.randn(batch, 3, *size)
            with torch.no_grad():
                difference = (model(x).last_hidden_state - program(x).last_hidden_state).abs().max().item()
            print("export", switch, rough, size, difference)
            assert difference <= near


def test_compiled_whole_with_dynamic_sizes(folder):
    from opendino.hf import AutoModel

    model = AutoModel.from_pretrained(folder)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for size in SIZES:
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x).pooler_output, model(x).pooler_output, atol=5e-6, rtol=0)


def test_backbone_of_a_local_folder(folder):
    """transformers asks the hub for any path here."""
    from opendino.hf import AutoBackbone

    backbone = AutoBackbone.from_pretrained(folder, out_features=["stage1", "stage3"])
    maps = backbone(torch.randn(1, 3, 98, 126)).feature_maps
    assert [m.shape for m in maps] == [(1, 64, 7, 9)] * 2

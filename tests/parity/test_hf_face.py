# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face face beside transformers' own classes: the same random weights, float32, the same numbers.

Weights travel through a folder written by transformers, so its layout is held to as well. Differences are printed
(`pytest -s`). `OPENDINO_FULL_PARITY=1` runs every shape, kind and size, which takes minutes.
"""

import os

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import transformers

from opendino import hf

LIMIT = 5e-6
SIZES = [(98, 98), (224, 224), (518, 518), (224, 308)]
SHAPES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    "S": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
KINDS = {
    "plain": ("Dinov2", {}),
    "registers": ("Dinov2WithRegisters", {}),
    "swiglu": ("Dinov2", {"use_swiglu_ffn": True}),
    "swiglu registers": ("Dinov2WithRegisters", {"use_swiglu_ffn": True}),
}
FEW = [
    *(("tiny", kind, size) for kind in KINDS for size in SIZES),
    ("S", "plain", (98, 98)),
    ("S", "registers", (98, 98)),
    ("B", "plain", (98, 98)),
]
ALL = [(shape, kind, size) for shape in SHAPES for kind in KINDS for size in SIZES]
CASES = ALL if os.environ.get("OPENDINO_FULL_PARITY") else FEW


def pair_of(what, shape, kind, folder, **fields):
    """The same weights in transformers' class and in ours; every tensor is random, biases and scales too."""
    family, extra = KINDS[kind]
    config = {"image_size": 518, "patch_size": 14, "num_labels": 7, **(SHAPES | WIDTHS)[shape], **extra, **fields}
    theirs = getattr(transformers, family + what)(getattr(transformers, f"{family}Config")(**config))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name and name.endswith("weight"):
                torch.nn.init.uniform_(parameter, 0.7, 1.3)
            elif "lambda1" in name:
                torch.nn.init.uniform_(parameter, 0.1, 0.5)
            elif "token" in name or "position" in name:  # tokens near zero would blow rounding up in the first norm
                torch.nn.init.normal_(parameter, std=0.3)
            elif name.endswith(("query.weight", "key.weight", "q_proj.weight", "k_proj.weight")):
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)  # attention far from even
            else:
                torch.nn.init.normal_(parameter, std=0.02)
    theirs.save_pretrained(folder)
    return theirs.eval(), getattr(hf, family + what).from_pretrained(folder).eval()


def largest(theirs, ours):
    if isinstance(theirs, tuple):
        return most(largest(a, b) for a, b in zip(theirs, ours, strict=True))
    assert theirs.shape == ours.shape
    return (theirs - ours).abs().max().item()


def most(differences):
    """The largest, or not a number where one is none: Python's `max` passes over those."""
    return np.max(list(differences)).item()


@torch.no_grad()
def largest_of_gradients(theirs, ours, folder):
    """Our names are those of the folder; theirs are mapped by saving gradients in the place of weights."""
    for parameter in theirs.parameters():
        parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    theirs.save_pretrained(folder / "gradients")
    wanted = type(ours).from_pretrained(folder / "gradients").state_dict()
    return most(
        largest(wanted[name], torch.zeros_like(p) if p.grad is None else p.grad) for name, p in ours.named_parameters()
    )


def name_of(case):
    return case if isinstance(case, str) else "x".join(map(str, case))


@pytest.mark.parametrize(("shape", "kind", "size"), CASES, ids=name_of)
def test_outputs_and_hidden_states(shape, kind, size, tmp_path):
    theirs, ours = pair_of("Model", shape, kind, tmp_path)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        want, got = theirs(x, output_hidden_states=True), ours(x, output_hidden_states=True)
    differences = {name: largest(want[name], got[name]) for name in want}
    print(shape, kind, size, differences)
    assert list(want) == list(got)
    assert most(differences.values()) <= LIMIT


@pytest.mark.parametrize("kind", list(KINDS))
def test_attentions(kind, tmp_path):
    theirs, ours = pair_of("Model", "tiny", kind, tmp_path)
    theirs.set_attn_implementation("eager")
    x = torch.randn(2, 3, 98, 126)
    want, got = theirs(x, output_attentions=True).attentions, ours(x, output_attentions=True).attentions
    assert len(got) == 3
    assert largest(tuple(want), got) <= LIMIT


WIDTHS = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    "S, cut": {"hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 6},
    "B, cut": {"hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12},
    "B, one block": {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12},
}
"""The widths of the released models; two blocks hold everything that more of them repeat, at 1,370 tokens one has to
do."""
EVERYTHING = [
    *((width, kind, size) for width in ("tiny", "S, cut") for kind in KINDS for size in SIZES),
    *(("B, cut", kind, size) for kind in KINDS for size in SIZES if size != (518, 518)),
    *(("B, one block", kind, (518, 518)) for kind in KINDS),
]


@pytest.mark.parametrize(("shape", "kind", "size"), EVERYTHING, ids=name_of)
def test_all_outputs_losses_and_gradients_at_every_width_and_size(shape, kind, size, tmp_path):
    theirs, ours = pair_of("ForImageClassification", shape, kind, tmp_path)
    theirs.set_attn_implementation("eager")
    ours.set_attn_implementation("eager")
    x, labels = torch.randn(1, 3, *size), torch.tensor([4])
    wanted = {"labels": labels, "output_hidden_states": True, "output_attentions": True}
    want, got = theirs(x, **wanted), ours(x, **wanted)
    differences = {name: largest(want[name], got[name]) for name in ("loss", "logits", "hidden_states", "attentions")}
    with torch.no_grad():
        bare = (theirs.base_model(x), ours.base_model(x))
    differences["pooler"] = largest(bare[0].pooler_output, bare[1].pooler_output)
    want.loss.backward()
    got.loss.backward()
    queries = [p.grad.abs().max().item() for name, p in ours.named_parameters() if name.endswith("query.weight")]
    differences["gradients"] = largest_of_gradients(theirs, ours, tmp_path)
    assert min(queries) > 20 * LIMIT, "attention too even: its gradients are too small to show a difference"
    print(shape, kind, size, {name: f"{value:.1e}" for name, value in differences.items()})
    assert len(got.attentions) == ours.config.num_hidden_layers
    assert most(differences.values()) <= LIMIT


@pytest.mark.parametrize("kind", ["plain", "registers"])
def test_masked_patches(kind, tmp_path):
    theirs, ours = pair_of("Model", "tiny", kind, tmp_path)
    x, masks = torch.randn(2, 3, 98, 98), torch.rand(2, 49) > 0.5
    assert largest(theirs(x, bool_masked_pos=masks)[0], ours(x, bool_masked_pos=masks)[0]) <= LIMIT


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="transformers 4 takes no attention_mask")
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masked_tokens(implementation, tmp_path):
    theirs, ours = pair_of("Model", "tiny", "registers", tmp_path)
    for model in (theirs, ours):
        model.set_attn_implementation(implementation)
    x, seen = torch.randn(2, 3, 56, 56), (torch.rand(2, 21) > 0.3).long()
    assert largest(theirs(x, attention_mask=seen)[0], ours(x, attention_mask=seen)[0]) <= LIMIT


LABELS = {
    "single_label_classification": (7, torch.tensor([3, 6])),
    "multi_label_classification": (7, (torch.arange(14).reshape(2, 7) % 3 == 0).float()),
    "regression": (1, torch.tensor([0.3, -2.0])),
}


@pytest.mark.parametrize("problem", list(LABELS))
@pytest.mark.parametrize("kind", list(KINDS))
def test_logits_loss_and_gradients(kind, problem, tmp_path):
    classes, labels = LABELS[problem]
    theirs, ours = pair_of("ForImageClassification", "tiny", kind, tmp_path, num_labels=classes)
    x = torch.randn(2, 3, 98, 98)
    want, got = theirs(x, labels=labels), ours(x, labels=labels)
    assert theirs.config.problem_type == ours.config.problem_type == problem
    assert most([largest(want.logits, got.logits), largest(want.loss, got.loss)]) <= LIMIT
    want.loss.backward()
    got.loss.backward()
    difference = largest_of_gradients(theirs, ours, tmp_path)
    print(kind, problem, "gradients", difference)
    assert difference <= LIMIT


@pytest.mark.parametrize("kind", list(KINDS))
def test_feature_maps(kind, tmp_path):
    theirs, ours = pair_of("Backbone", "tiny", kind, tmp_path, out_indices=[0, 2, -1])
    x = torch.randn(2, 3, 98, 126)
    assert largest(theirs(x).feature_maps, ours(x).feature_maps) <= LIMIT
    assert theirs.channels == ours.channels


@pytest.mark.parametrize("kind", list(KINDS))
def test_training_draws_the_same_random_numbers(kind, tmp_path):
    theirs, ours = pair_of("Model", "tiny", kind, tmp_path, drop_path_rate=0.3)
    x = torch.randn(4, 3, 56, 56)
    outputs = []
    for model in (theirs.train(), ours.train()):
        torch.manual_seed(3)
        outputs.append(model(x)[0])
    assert largest(*outputs) <= LIMIT


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_folder_of_ours_opens_in_transformers(kind, tmp_path):
    _, ours = pair_of("ForImageClassification", "tiny", kind, tmp_path)
    ours.save_pretrained(tmp_path / "ours")
    theirs = getattr(transformers, type(ours).__name__).from_pretrained(tmp_path / "ours").eval()
    x = torch.randn(1, 3, 98, 98)
    assert largest(theirs(x).logits, ours(x).logits) <= LIMIT


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="transformers 4 has one layout")
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_layout_of_transformers_memory_opens_in_ours(kind, tmp_path):
    theirs, _ = pair_of("ForImageClassification", "tiny", kind, tmp_path)
    theirs.save_pretrained(tmp_path / "memory", save_original_format=False)
    ours = hf.AutoModelForImageClassification.from_pretrained(tmp_path / "memory")
    x = torch.randn(1, 3, 98, 98)
    assert largest(theirs(x).logits, ours(x).logits) <= LIMIT


SETTINGS = {"size": {"shortest_edge": 256}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"do_center_crop": False},
        {"do_resize": False},
        {"do_rescale": False, "do_normalize": False},
        {"size": {"height": 50, "width": 61}},
        {"crop_size": {"height": 300, "width": 251}},
        {"resample": 2},
    ],
)
def test_image_processor_bit_for_bit(call):
    reference = getattr(transformers, "BitImageProcessorPil", transformers.BitImageProcessor)(**SETTINGS)
    processor = hf.Dinov2ImageProcessor()
    array = np.random.default_rng(0).integers(0, 256, (123, 211, 3)).astype(np.uint8)
    floats = array.astype(np.float32) / 255
    for image in (Image.fromarray(array), array, array.transpose(2, 0, 1).copy(), floats):
        want = reference(image, return_tensors="np", **call).pixel_values
        got = processor(image, return_tensors="np", **call).pixel_values
        assert want.dtype == got.dtype
        assert np.array_equal(want, got)


def test_image_processor_on_photographs(real_data):
    import io

    import pyarrow.parquet as parquet

    reference = getattr(transformers, "BitImageProcessorPil", transformers.BitImageProcessor)(**SETTINGS)
    processor = hf.Dinov2ImageProcessor()
    rows = parquet.read_table(real_data / "photos.parquet", columns=["image"]).slice(0, 24)["image"].to_pylist()
    for row in rows:
        image = Image.open(io.BytesIO(row["bytes"] if isinstance(row, dict) else row))
        want = reference(image, return_tensors="np").pixel_values
        assert np.array_equal(want, processor(image, return_tensors="np").pixel_values)
        fast = processor(image, return_tensors="np", backend="torch").pixel_values
        assert np.abs(want - fast).mean() < 0.01

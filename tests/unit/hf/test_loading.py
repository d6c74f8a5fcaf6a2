# SPDX-License-Identifier: Apache-2.0
"""Files that do not fit say so: each kind of damage, one clear error."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from opendino import hf
from opendino.errors import CheckpointError
from opendino.hf._loading import adapter_classes, check_keys, hub_names
from opendino.hf.errors import WeightsError

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "num_labels": 3}


@pytest.fixture
def folder(tmp_path):
    hf.Dinov2Model(hf.Dinov2Config(**TINY)).save_pretrained(tmp_path)
    return tmp_path


def edit(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50_000])


def text(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")


def as_pickle(folder, content):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a weights file ran')",))


def shards(folder):
    model = hf.Dinov2Model.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def lose_shard(folder):
    shards(folder)
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def spoil_index(folder):
    shards(folder)
    (folder / "model.safetensors.index.json").write_text("{")


DAMAGE = {
    "whole numbers": (
        lambda f: edit(f, lambda s: s.update({"layernorm.weight": torch.ones(32, dtype=torch.int8)})),
        r"these are not: layernorm.weight \(I8\)",
    ),
    "whole numbers in a pickle": (
        lambda f: as_pickle(
            f, load_file(f / "model.safetensors") | {"layernorm.bias": torch.zeros(32, dtype=torch.bool)}
        ),
        r"these are not: layernorm.bias \(torch.bool\)",
    ),
    "not finite": (
        lambda f: edit(f, lambda s: s.update({"layernorm.weight": torch.full((32,), torch.inf)})),
        "not all numbers are finite in layernorm.weight",
    ),
    "index elsewhere": (
        lambda f: (
            shards(f),
            (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        )[1],
        "not a file beside it",
    ),
    "truncated": (cut, "not a whole safetensors file"),
    "text": (text, "git lfs pull"),
    "missing": (
        lambda f: edit(f, lambda s: s.pop("encoder.layer.1.mlp.fc1.weight")),
        "missing and would be random: encoder.layer.1.mlp.fc1.weight;",
    ),
    "extra": (
        lambda f: edit(f, lambda s: s.update({"encoder.layer.2.norm1.weight": torch.zeros(32)})),
        "no place in the model: encoder.layer.2.norm1.weight;",
    ),
    "renamed": (
        lambda f: edit(f, lambda s: s.update({"norm.weight": s.pop("layernorm.weight")})),
        "the file has others, which the model does not know: norm.weight",
    ),
    "shape": (
        lambda f: edit(f, lambda s: s.update({"layernorm.weight": torch.zeros(31)})),
        r"layernorm.weight; the first has \(31,\) in the file and \(32,\) in the model",
    ),
    "code": (lambda f: as_pickle(f, {"a": Hostile()}), "one that would run code"),
    "no pickle": (
        lambda f: (as_pickle(f, {}), (f / "pytorch_model.bin").write_text("hello"))[1],
        "not a whole file of tensors",
    ),
    "no weights in it": (lambda f: as_pickle(f, {"epoch": 3}), "something else than tensors"),
    "lost shard": (lose_shard, "names files that are not there: model-00001"),
    "spoilt index": (spoil_index, "index.json: is no JSON"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_each_damage_has_its_error(damage, folder):
    spoil, complaint = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(WeightsError, match=complaint) as caught:
        hf.Dinov2Model.from_pretrained(folder)
    assert isinstance(caught.value, CheckpointError)
    assert isinstance(caught.value, RuntimeError)


def test_a_config_of_another_shape_names_the_weights(folder):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "image_size": 70}))
    with pytest.raises(WeightsError, match=r"embeddings.position_embeddings; the first has"):
        hf.AutoModel.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_an_adapter_says_how_many_classes_it_has(folder, tmp_path_factory):
    peft = pytest.importorskip("peft")
    x, adapter = torch.randn(2, 3, 56, 56), tmp_path_factory.mktemp("adapter")
    settings = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = hf.AutoModelForImageClassification.from_pretrained(folder, num_labels=5)
    tuned = peft.get_peft_model(model, settings).eval()
    tuned.save_pretrained(adapter)
    wanted = tuned(x).logits
    for arguments in ({}, {"num_labels": 5}):
        opened = hf.AutoModelForImageClassification.from_pretrained(adapter, **arguments)
        assert opened.config.num_labels == 5
        torch.testing.assert_close(opened(x).logits, wanted)
    assert adapter_classes(adapter, {}) == 5
    assert adapter_classes(folder, {}) is None


def test_code_is_never_let_in(folder):
    with pytest.raises(WeightsError, match="would run code"):
        hf.Dinov2Model.from_pretrained(folder, weights_only=False)


def test_what_may_be_missing_and_left_over(folder):
    state = load_file(folder / "model.safetensors")
    model = hf.Dinov2ForImageClassification.from_pretrained(folder)  # a new classifier
    assert torch.equal(model.dinov2.layernorm.weight, state["layernorm.weight"])
    model.save_pretrained(folder)
    backbone = hf.Dinov2Model.from_pretrained(folder)  # without the classifier
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_who_wants_to_go_on_can(folder):
    edit(folder, lambda s: s.pop("layernorm.weight"))
    model = hf.Dinov2Model.from_pretrained(folder, strict=False)
    assert torch.equal(model.layernorm.weight, torch.ones(32))
    _, info = hf.Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {"layernorm.weight"}


def test_shapes_can_be_passed_over(folder):
    edit(folder, lambda s: s.update({"layernorm.weight": torch.zeros(31)}))
    model = hf.Dinov2Model.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert torch.equal(model.layernorm.weight, torch.ones(32))


@pytest.mark.parametrize("form", ["bin", "shards"])
def test_other_forms_of_whole_weights_load(form, folder):
    state = load_file(folder / "model.safetensors")
    if form == "bin":
        as_pickle(folder, state)
    else:
        shards(folder)
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("swiglu", [False, True])
def test_the_layout_in_the_memory_of_transformers_5(swiglu, tmp_path):
    model = hf.Dinov2Model(hf.Dinov2Config(**TINY, use_swiglu_ffn=swiglu, pos_embed_resize="timm"))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    theirs = {}
    for key, value in state.items():
        if ".mlp.weights_in." in key:
            halves = value.chunk(2)
            theirs[key.replace("weights_in", "gate_proj")], theirs[key.replace("weights_in", "up_proj")] = halves
            continue
        for ours, other in (("attention.query", "q_proj"), ("attention.key", "k_proj"), ("attention.value", "v_proj")):
            key = key.replace(f".attention.{ours}.", f".attention.{other}.")
        theirs[key.replace(".output.dense.", ".o_proj.").replace(".weights_out.", ".down_proj.")] = value.clone()
    assert all(torch.equal(value, state[key]) for key, value in hub_names(theirs).items())
    save_file({key: value.contiguous() for key, value in theirs.items()}, tmp_path / "model.safetensors")
    again = hf.AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert again.config.pos_embed_resize == "timm"
    half = hf.Dinov2Model.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_half_a_gate_is_not_whole():
    layer = "encoder.layer.0"
    half = {f"{layer}.attention.q_proj.bias": torch.zeros(2), f"{layer}.mlp.gate_proj.weight": torch.zeros(2, 2)}
    with pytest.raises(WeightsError, match=r"part 2 of 2 of blocks.0.mlp.w12.weight"):
        hub_names(half)


def test_keys_by_hand():
    check_keys("x", [], [])
    head = ["classifier.weight", "classifier.bias"]
    check_keys("x", head, [], head)
    check_keys("x", [], head)
    with pytest.raises(WeightsError, match=r"random: classifier\.weight;"):
        check_keys("x", ["classifier.weight"], [], head)
    with pytest.raises(WeightsError, match=r"no place in the model: classifier\.bias;"):
        check_keys("x", [], ["classifier.bias"])
    with pytest.raises(WeightsError, match=r"no place in the model: classifier\.scale;"):
        check_keys("x", [], ["classifier.scale"], head)
    with pytest.raises(WeightsError, match="the classifier is missing and would be random"):
        check_keys("x", head, [], head, promised=True)
    with pytest.raises(WeightsError, match="random: a, b, c and 2 more"):
        check_keys("x", ["e", "d", "c", "b", "a"], [])


@pytest.fixture
def classifier(tmp_path):
    hf.Dinov2ForImageClassification(hf.Dinov2Config(**TINY)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("lost", ["classifier.weight", "classifier.bias"])
def test_half_a_classifier_is_an_error(classifier, lost):
    edit(classifier, lambda s: s.pop(lost))
    with pytest.raises(WeightsError, match=f"missing and would be random: {lost}"):
        hf.AutoModelForImageClassification.from_pretrained(classifier)
    with pytest.raises(WeightsError, match="no place in the model: classifier"):
        hf.AutoModel.from_pretrained(classifier)


def test_a_classifier_that_the_config_promises(classifier):
    edit(classifier, lambda s: [s.pop(name) for name in ("classifier.weight", "classifier.bias")])
    with pytest.raises(WeightsError, match=r"the classifier is missing and would be random: classifier\.bias, "):
        hf.AutoModelForImageClassification.from_pretrained(classifier)
    hf.AutoModelForImageClassification.from_pretrained(classifier, strict=False)


def test_a_new_classifier_on_a_backbone_is_warned_of(folder, caplog):
    with caplog.at_level("WARNING", logger="opendino"):
        hf.AutoModelForImageClassification.from_pretrained(folder)
    assert [r for r in caplog.records if "is new and random: train it" in r.getMessage()]
    caplog.clear()
    with caplog.at_level("WARNING", logger="opendino"):
        hf.AutoModel.from_pretrained(folder)
    assert not [r for r in caplog.records if r.name.startswith("opendino")]


def test_weights_from_the_callers_hands_are_checked_too(folder):
    state, config = load_file(folder / "model.safetensors"), hf.Dinov2Config(**TINY)
    model = hf.Dinov2Model.from_pretrained(None, config=config, state_dict=dict(state))
    assert torch.equal(model.layernorm.weight, state["layernorm.weight"])
    for change, complaint in (
        ({"extra": torch.ones(1)}, "no place in the model: extra"),
        ({"layernorm.weight": torch.ones(32).int()}, "layernorm.weight"),
        ({"layernorm.weight": torch.ones(31)}, "another shape"),
    ):
        with pytest.raises(WeightsError, match=complaint):
            hf.Dinov2Model.from_pretrained(None, config=config, state_dict={**state, **change})
    del state["layernorm.bias"]
    with pytest.raises(WeightsError, match=r"would be random: layernorm\.bias"):
        hf.Dinov2Model.from_pretrained(None, config=config, state_dict=state)
    hf.Dinov2Model.from_pretrained(None, config=config, state_dict={})  # new weights, by wish


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_of_floats_load(folder, dtype):
    edit(folder, lambda s: s.update({key: value.to(dtype) for key, value in s.items()}))
    assert hf.AutoModel.from_pretrained(folder, dtype=torch.float32).dtype == torch.float32

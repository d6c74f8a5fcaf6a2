# SPDX-License-Identifier: Apache-2.0
"""The six models: their outputs from their parts, the losses by formula, what is asked for and what is given."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

import transformers

from opendino import hf
from opendino.hf.errors import InputError

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "num_labels": 5,
}
KINDS = {"plain": "Dinov2", "registers": "Dinov2WithRegisters"}


def model_of(what, kind="plain", **fields):
    config = getattr(hf, f"{KINDS[kind]}Config")(**{**TINY, **fields})
    model = getattr(hf, KINDS[kind] + what)(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


def images(size=(56, 56), batch=2):
    return torch.randn(batch, 3, *size)


def test_outputs_come_from_the_parts(kind):
    model, x = model_of("Model", kind), images((42, 70))
    last, states, _ = model.encoder(model.embeddings(x), keep=range(4))
    out = model(x, output_hidden_states=True)
    assert torch.equal(out.last_hidden_state, model.layernorm(last))
    assert torch.equal(out.pooler_output, out.last_hidden_state[:, 0])
    assert all(torch.equal(a, b) for a, b in zip(out.hidden_states, states.values(), strict=True))
    assert list(out) == ["last_hidden_state", "pooler_output", "hidden_states"]


@pytest.mark.parametrize("what", ["Model", "ForImageClassification", "Backbone"])
def test_tuples_hold_what_there_is(what, kind):
    model, x = model_of(what, kind), images()
    full = model(x, output_hidden_states=True, output_attentions=True)
    parts = model(x, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert isinstance(parts, tuple)
    for a, b in zip(full.to_tuple(), parts, strict=True):
        for s, t in zip(a, b, strict=True):
            assert torch.equal(s, t)
    model.config.return_dict = False
    assert isinstance(model(x), tuple)
    assert not isinstance(model(x, return_dict=True), tuple)


def test_the_config_is_asked_where_the_caller_is_silent():
    model, x = model_of("Model"), images()
    model.config.output_hidden_states = True
    assert len(model(x).hidden_states) == 4
    assert model(x, output_hidden_states=False).hidden_states is None


def test_some_hidden_states():
    model, x = model_of("Model"), images()
    every = model(x, output_hidden_states=True).hidden_states
    some = model(x, output_hidden_states=[0, -1]).hidden_states
    assert [state is None for state in some] == [False, True, True, False]
    assert torch.equal(some[3], every[3])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attentions_come_whatever_the_implementation(implementation):
    model, x = model_of("Model", "registers"), images()
    want = model(x).last_hidden_state
    model.set_attn_implementation(implementation)
    out = model(x, output_attentions=True)
    assert [a.shape for a in out.attentions] == [(2, 4, 21, 21)] * 3
    torch.testing.assert_close(torch.stack(out.attentions).sum(-1), torch.ones(3, 2, 4, 21))
    torch.testing.assert_close(out.last_hidden_state, want, atol=1e-5, rtol=1e-5)


def test_masks_reach_the_embeddings():
    model, x = model_of("Model"), images()
    masks = torch.rand(2, 16) > 0.5
    want = model.layernorm(model.encoder(model.embeddings(x, masks))[0])
    assert torch.equal(model(x, bool_masked_pos=masks).last_hidden_state, want)


def test_masked_tokens_change_nothing():
    model, x = model_of("Model"), images()
    seen = torch.ones(2, 17)
    seen[:, 3] = 0
    before = model(x, attention_mask=seen).pooler_output
    changed = x.clone()
    changed[:, :, :14, 28:42] += 1  # patch 2 is token 3
    torch.testing.assert_close(model(changed, attention_mask=seen).pooler_output, before)
    assert (model(changed).pooler_output - model(x).pooler_output).abs().max() > 1e-3


def test_classifier_sees_cls_and_the_mean_of_patches(kind):
    model, x = model_of("ForImageClassification", kind), images()
    tokens = getattr(model, model.base_model_prefix)(x).last_hidden_state
    seen = torch.cat([tokens[:, 0], tokens[:, -16:].mean(1)], dim=1)  # registers stand before the 16 patches
    torch.testing.assert_close(model(x).logits, F.linear(seen, model.classifier.weight, model.classifier.bias))


def test_no_labels_no_classifier():
    model = model_of("ForImageClassification", num_labels=0)
    assert model(images()).logits.shape == (2, 64)


@pytest.mark.parametrize(
    ("classes", "labels", "problem", "loss"),
    [
        (5, torch.tensor([0, 3]), "single_label_classification", F.cross_entropy),
        (1, torch.tensor([0.5, -1.0]), "regression", lambda z, y: ((z[:, 0] - y) ** 2).mean()),
        (
            5,
            torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 1.0]]),
            "multi_label_classification",
            lambda z, y: -(y * z.sigmoid().log() + (1 - y) * (1 - z.sigmoid()).log()).mean(),
        ),
    ],
)
def test_three_kinds_of_loss(classes, labels, problem, loss):
    model, x = model_of("ForImageClassification", num_labels=classes), images()
    out = model(x, labels=labels)
    assert model.config.problem_type == problem
    torch.testing.assert_close(out.loss, loss(out.logits, labels), atol=1e-5, rtol=1e-5)
    assert list(out) == ["loss", "logits"]


def test_feature_maps_are_normed_patches_in_their_places(kind):
    model, x = model_of("Backbone", kind, out_indices=[0, 2, -1]), images((42, 70))
    out = model(x, output_hidden_states=True)
    assert model.channels == [32, 32, 32]
    for i, got in zip((0, 2, 3), out.feature_maps, strict=True):
        normed = model.layernorm(out.hidden_states[i])[:, -15:]
        assert got.shape == (2, 32, 3, 5)
        assert got.is_contiguous()
        assert torch.equal(got[:, :, 1, 3], normed[:, 1 * 5 + 3])
    assert model(x).hidden_states is None


def test_feature_maps_as_they_come():
    model, x = model_of("Backbone", "registers", apply_layernorm=False, reshape_hidden_states=False), images()
    out = model(x, output_hidden_states=True)
    assert torch.equal(out.feature_maps[0], out.hidden_states[-1])


def test_backbone_says_what_detectors_ask():
    model = model_of("Backbone", out_features=["stage1"])
    assert model.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert model.out_feature_channels == dict.fromkeys(model.stage_names, 32)
    assert model.backbone_type.value == "transformers"
    model.out_indices = [2, 3]
    assert model.out_features == ["stage2", "stage3"]
    assert len(model.forward_with_filtered_kwargs(images()).feature_maps) == 2
    model.out_features = None
    assert model.out_indices == [3]


@pytest.mark.parametrize("what", ["Model", "ForImageClassification"])
def test_images_are_needed(what):
    with pytest.raises(InputError, match="pixel_values are missing"):
        model_of(what)()
    with pytest.raises(ValueError, match="with 3 channels"):
        model_of(what)(torch.randn(1, 1, 56, 56))


def test_new_weights_are_drawn_as_published():
    model = hf.Dinov2WithRegistersForImageClassification(
        hf.Dinov2WithRegistersConfig(**{**TINY, "hidden_size": 256, "layerscale_value": 0.3, "initializer_range": 0.05})
    )
    state = model.state_dict()
    for key, value in state.items():
        name = key.split(".")[-2] + "." + key.split(".")[-1]
        if "token" in name and "cls" not in name:
            assert not value.any(), key
        elif "lambda1" in name:
            assert (value == 0.3).all(), key
        elif "norm" in name:
            assert (value == float("weight" in name)).all(), key
        elif "bias" in name:
            assert not value.any(), key
        elif value.numel() > 1000:
            assert abs(value.std().item() - 0.05) < 0.005, key


def test_checkpointed_gradients_are_the_same():
    model, x, labels = model_of("ForImageClassification"), images(), torch.tensor([1, 4])
    model.train()
    model(x, labels=labels).loss.backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable()
    model(x, labels=labels).loss.backward()
    assert set(want) == {n for n, _ in model.named_parameters()} - {"dinov2.embeddings.mask_token"}
    assert all(torch.equal(p.grad, want[n]) for n, p in model.named_parameters() if n in want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_flex_attention_gives_the_same():
    model, x = model_of("Model"), images()
    seen = torch.ones(2, 17)
    seen[0, 4:9] = 0
    want = model(x, attention_mask=seen).last_hidden_state
    model.set_attn_implementation("flex_attention")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # compiling it takes a minute on a CPU
        got = model(x, attention_mask=seen).last_hidden_state
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_dropout_and_stochastic_depth_act_in_training_only():
    model = model_of("Model", drop_path_rate=0.5, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    x = images()
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])


def test_input_embeddings_are_the_patches(kind):
    for what in ("Model", "ForImageClassification", "Backbone"):
        assert type(model_of(what, kind).get_input_embeddings()).__name__ == "Dinov2PatchEmbeddings"


def test_push_to_hub_sends_the_published_layout(tmp_path, monkeypatch):
    from transformers.utils import hub

    sent = {}

    def commit(repo_id, operations, **_):
        sent[repo_id] = {op.path_in_repo: Path(op.path_or_fileobj).read_bytes() for op in operations}

    api = {"create_repo": lambda repo_id, **_: SimpleNamespace(repo_id=repo_id), "create_commit": commit}
    if hasattr(hub, "hf_api"):  # transformers 5
        monkeypatch.setattr(hub, "hf_api", lambda: SimpleNamespace(**api))
    else:
        for name, function in api.items():
            monkeypatch.setattr(hub, name, function)
    monkeypatch.chdir(tmp_path)
    model = model_of("Model", "registers")
    model.push_to_hub("someone/model")
    hf.Dinov2ImageProcessor().push_to_hub("someone/processor")
    assert {"config.json", "model.safetensors"} <= sent["someone/model"].keys()
    (tmp_path / "again").mkdir()
    for name, content in sent["someone/model"].items():
        (tmp_path / "again" / name).write_bytes(content)
    again = hf.AutoModel.from_pretrained(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    written = json.loads(sent["someone/processor"]["preprocessor_config.json"])
    assert written["image_processor_type"] == "BitImageProcessor"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664)])
def test_saved_weights_may_be_read_by_those_who_may_read_other_files(tmp_path, mask, mode):
    model = model_of("Model")
    before = os.umask(mask)
    try:
        model.save_pretrained(tmp_path / "whole")
        model.save_pretrained(str(tmp_path / "shards"), max_shard_size="20KB")
        (tmp_path / "whole" / "model.safetensors").chmod(0o600)
        model.save_pretrained(tmp_path / "whole")
    finally:
        os.umask(before)
    shards = list((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 1
    assert {path.stat().st_mode & 0o777 for path in (*shards, tmp_path / "whole" / "config.json")} == {mode}
    assert (tmp_path / "whole" / "model.safetensors").stat().st_mode & 0o777 == 0o600, "made private on purpose"
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("numbers", [[99], [0, 4], [-5]])
def test_hidden_states_that_do_not_exist(numbers):
    with pytest.raises(InputError, match="are no states of this model; it has 0 to 3"):
        model_of("Model")(images(), output_hidden_states=numbers)


@pytest.mark.parametrize("what", ["Model", "ForImageClassification", "Backbone"])
@pytest.mark.parametrize("switch", ["hf", "official", "timm"])
def test_baked_models_give_the_same_and_refuse_other_sizes(what, switch, kind, tmp_path):
    model, x = model_of(what, kind, pos_embed_resize=switch), images((42, 98))
    baked = model.bake((42, 98))
    want, got = (m(x, return_dict=False)[0] for m in (model, baked))
    for a, b in zip(*((out if isinstance(out, tuple) else (out,)) for out in (want, got)), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="4x4 patches do not fit a model that is baked for 3x7"):
        baked(images())
    with pytest.raises(InputError, match="baked for 3x7"):
        baked.bake(56)
    with pytest.raises(InputError, match="hold no patch"):
        model.bake(13)
    assert model(images()) is not None  # the source is as it was
    baked.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.image_size == [42, 98]
    first = again(x, return_dict=False)[0]
    assert torch.equal(first[0] if isinstance(first, tuple) else first, got[0] if isinstance(got, tuple) else got)


def test_dropout_acts_where_the_transformers_installed_has_it():
    model = model_of("Model", hidden_dropout_prob=0.5).train()
    output = model.encoder.layer[0].attention.output
    x = torch.randn(1, 3, 32)
    assert torch.equal(output(x), output.dense(x)) == (int(transformers.__version__.split(".")[0]) >= 5)
    assert not torch.equal(model.embeddings(images()), model.embeddings(images()))

# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning through transformers' Trainer and PEFT; the extra `dev` brings what both need."""

import pytest
import torch

pytest.importorskip("transformers")

import accelerate  # noqa: F401  Trainer asks for it
import peft
import transformers

from opendino import hf

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "num_labels": 3}


class Stripes(torch.utils.data.Dataset):
    """Images whose label is the channel that is bright."""

    def __len__(self):
        return 48

    def __getitem__(self, i):
        image = torch.randn(3, 56, 56, generator=torch.Generator().manual_seed(i))
        image[i % 3] += 3
        return {"pixel_values": image, "labels": i % 3}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_trainer_learns_saves_and_evaluates(tmp_path):
    model = hf.Dinov2ForImageClassification(hf.Dinov2Config(**TINY, layerscale_value=0.1))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=12,
        num_train_epochs=5,
        learning_rate=3e-3,
        gradient_checkpointing=True,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Stripes(), eval_dataset=Stripes())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(before, after)
    assert after < 0.3 * before
    saved = hf.AutoModelForImageClassification.from_pretrained(sorted(tmp_path.glob("checkpoint-*"))[-1])
    x = torch.stack([Stripes()[i]["pixel_values"] for i in range(6)])
    assert saved(x).logits.argmax(-1).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
def test_lora_on_query_and_value(family, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    config = getattr(hf, f"{family}Config")(**TINY, patch_size=14)
    getattr(hf, f"{family}ForImageClassification")(config).save_pretrained(base)

    def fresh():
        return hf.AutoModelForImageClassification.from_pretrained(base)

    settings = peft.LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
    tuned = peft.get_peft_model(fresh(), settings)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert sum("lora_A" in name for name in trained) == 2 * 2  # query and value of two blocks
    x, labels = torch.randn(2, 3, 56, 56), torch.tensor([0, 2])
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = tuned(pixel_values=x, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    tuned.eval().save_pretrained(adapter)
    want = tuned(pixel_values=x).logits
    again = peft.PeftModel.from_pretrained(fresh(), adapter).eval()
    torch.testing.assert_close(again(pixel_values=x).logits, want)
    direct = hf.AutoModelForImageClassification.from_pretrained(adapter)
    assert type(direct).__module__ == "opendino.hf.modeling"
    torch.testing.assert_close(direct(x).logits, want)
    torch.testing.assert_close(tuned.merge_and_unload()(x).logits, want, atol=1e-5, rtol=1e-5)

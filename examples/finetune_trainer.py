# SPDX-License-Identifier: Apache-2.0
"""An image classifier through transformers' `Trainer`, from any model that opendino opens.

    python examples/finetune_trainer.py runs/mine data/train data/val out/classifier

The data are folders of class folders. The model is first written as a Hugging Face folder, so a run, a .pth file, a
published name or such a folder will do; the result opens with `opendino.hf` and with plain transformers.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from opendino.checkpoint.conversion import ConvertConfig, convert
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.hf import AutoImageProcessor, AutoModelForImageClassification


class Pictures(torch.utils.data.Dataset):
    """Pixels and labels as `Trainer` wants them."""

    def __init__(self, images: ImageDataset, processor) -> None:
        self.images, self.processor = images, processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict:
        pixels = self.processor(images=self.images.image(row), return_tensors="pt").pixel_values[0]
        return {"pixel_values": pixels, "labels": int(self.images.targets[row])}


def accuracy(found) -> dict[str, float]:
    logits, labels = found
    return {"accuracy": float((np.argmax(logits, axis=-1) == labels).mean())}


def main(model: str, train: str, val: str, out: str, epochs: float = 3, lr: float = 2e-5) -> float:
    parts = [open_dataset(source) for source in (train, val)]
    names = parts[0].classes
    with tempfile.TemporaryDirectory() as folder:
        convert(model, Path(folder) / "model", ConvertConfig(to="hf"))
        processor = AutoImageProcessor.from_pretrained(f"{folder}/model")
        network = AutoModelForImageClassification.from_pretrained(
            f"{folder}/model", id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
        )
    arguments = TrainingArguments(
        output_dir=out,
        num_train_epochs=epochs,
        learning_rate=lr,
        per_device_train_batch_size=16,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
    )
    data = [Pictures(part, processor) for part in parts]
    trainer = Trainer(network, arguments, train_dataset=data[0], eval_dataset=data[1], compute_metrics=accuracy)
    trainer.train()
    trainer.save_model(out)
    processor.save_pretrained(out)
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    print(f"accuracy {main(*sys.argv[1:5]):.1%}; written to {sys.argv[4]}")

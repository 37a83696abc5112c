"""A transformer of Hugging Face, fine-tuned as a dynamic model by Hugging Face's own Trainer.

``python examples/huggingface_trainer.py``
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch

import dyncompile as dc
from dyncompile.zoo.third_party import third_party

hf: Any = third_party("transformers")  # which imports torchvision; this helps it beside a CPU-only torch


def samples(count: int = 64) -> list[dict[str, Any]]:
    """Sentences of 12 tokens; the class is whether token 7 is among them."""
    tokens = torch.randint(8, 50, (count, 12))
    tokens[::2, 3] = 7
    return [{"input_ids": row, "labels": torch.tensor(int(7 in row))} for row in tokens]


def main(steps: int = 30) -> float:
    """Train with random widths in every step; returns the loss at the end."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model, data = hf.BertForSequenceClassification(config), samples()
    example = {key: torch.stack([sample[key] for sample in data[:4]]) for key in ("input_ids", "labels")}
    dyn = dc.dynamize(model, method="dsnet(gate=False)", example_inputs=example).train()
    dyn.policy = dc.Full()  # whoever calls the model decides how: Sampled(seed), Smallest(), Learned()
    with tempfile.TemporaryDirectory() as folder:
        arguments = hf.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,  # by the names in `forward`, which are the source's
        )
        trainer = hf.Trainer(model=dyn, args=arguments, train_dataset=data)
        trainer.model_accepts_loss_kwargs = False  # what was not given at capture is no argument
        done = trainer.train()
        loaded = dc.DynamicModel.from_pretrained(dyn.save_pretrained(folder))
    with torch.no_grad():
        output, _ = loaded.run(policy=dc.Smallest(), **example)
    print(f"loss {done.training_loss:.3f}; at the smallest width {float(output['loss']):.3f}")
    return done.training_loss


if __name__ == "__main__":
    main()

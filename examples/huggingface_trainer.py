"""A dynamic transformer in Hugging Face's own Trainer: ``python examples/huggingface_trainer.py``."""

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


class Widths(hf.TrainerCallback):
    """Whoever calls a dynamic model decides how: a random width and the whole network in turns."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Called by the Trainer with the model among `given`."""
        given["model"].policy = dc.Full() if state.global_step % 2 else dc.Sampled(state.global_step)


def main(steps: int = 60) -> tuple[float, float]:
    """Train; returns the losses at full and at the smallest width."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = hf.BertForSequenceClassification(hf.BertConfig(vocab_size=50, **sizes))
    data = samples()
    example = {key: torch.stack([sample[key] for sample in data[:4]]) for key in ("input_ids", "labels")}
    dyn = dc.dynamize(model, method="dsnet(gate=False)", example_inputs=example).train()
    with tempfile.TemporaryDirectory() as folder:
        # Columns are removed by the names in `forward`, which are the source's.
        quiet: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "save_strategy": "no"}
        arguments = hf.TrainingArguments(
            folder, max_steps=steps, learning_rate=3e-3, use_cpu=True, remove_unused_columns=False, **quiet
        )
        trainer = hf.Trainer(model=dyn, args=arguments, train_dataset=data, callbacks=[Widths()])
        trainer.model_accepts_loss_kwargs = False  # what was not given at capture is no argument
        trainer.train()
        loaded = dc.DynamicModel.from_pretrained(dyn.save_pretrained(folder)).eval()
    with torch.no_grad():
        outputs = [loaded.run(policy=policy, **example)[0] for policy in (dc.Full(), dc.Smallest())]
    whole, smallest = (float(output["loss"]) for output in outputs)
    print(f"loss {whole:.3f}; at the smallest width {smallest:.3f}")
    return whole, smallest


if __name__ == "__main__":
    main()

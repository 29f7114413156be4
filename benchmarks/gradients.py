"""Whether the compiled, captured pass computes the gradients that the eager one does, on one batch; on a GPU.

    python -m benchmarks.gradients --model MODEL --data train.jsonl --output results/captured_gradients.json

MODEL may be config and tokenizer alone, as for `benchmarks.training`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import get_peft_model

from antifraud.compiling import compile_layers
from antifraud.provenance import code_provenance
from antifraud.training.cuda_graphs import CapturedPass
from antifraud.training.loss import label_position_loss
from benchmarks import refusing_in_a_line
from benchmarks.training import batch_of, folder_and_rows, free_memory
from data.files import write_json
from evaluate import load_model
from trainer import build_loraconfig


def captured_against_eager(folder: str, rows: Dataset, keep_fewer: bool = False) -> dict:
    """Whether the compiled, captured pass computes what the eager one does, on one batch; on a GPU.

    Args:
        keep_fewer: as for `compile_layers`.

    Returns:
        relative differences of loss and gradients, without dropout: of the captured pass to the eager one and, to see
        what 16-bit rounding does, of the eager one in two halves; and, with dropout, the loss's change along the
        gradient over what the gradient promises, which is 1 if the backward pass drops what the forward pass did.
    """
    probe = _GradientProbe(folder, rows, 0.0, keep_fewer)
    captured = probe.captured()  # before any other backward, see `CapturedPass`
    with torch.compiler.set_stance("force_eager"):
        whole, halves = probe.eager(1), probe.eager(2)
    found = {"captured": _relative_difference(captured, whole), "in_two_halves": _relative_difference(halves, whole)}
    del probe, captured, whole, halves
    probe = _GradientProbe(folder, rows, 0.2, keep_fewer)
    _, gradient = probe.captured()
    promised = 0.05  # of a loss of about ten: a small step, yet well above 16-bit noise
    ahead, behind = (probe.captured(step * promised / gradient.square().sum(), gradient)[0] for step in (0.5, -0.5))
    return {**found, "change_of_loss_over_promised_with_dropout": (ahead - behind) / promised}


class _GradientProbe:
    """Loss and gradients of one batch under LoRA with random values, eager or captured."""

    def __init__(self, folder: str, rows: Dataset, dropout: float, keep_fewer: bool) -> None:
        free_memory()
        torch._dynamo.reset()  # what was compiled before counts towards a limit, past which nothing is
        self.keep_fewer = keep_fewer
        base, tokenizer = load_model(folder, "cuda")
        torch.manual_seed(0)
        self.model = get_peft_model(base, build_loraconfig(lora_dropout=dropout)).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.normal_(std=0.02)  # LoRA's B starts at zero, which would hide A's gradients
        self.prefix, self.input_ids, self.labels = batch_of(rows, 0, tokenizer, "cuda", multiple=16)
        self.n_labels = (self.labels != -100).sum()
        self.most_labels = int((self.labels != -100).sum(1).max())
        self.pass_: CapturedPass | None = None

    def loss(self, input_ids, labels, n_labels):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return label_position_loss(self.model, input_ids, labels, n_labels, self.most_labels * len(labels),
                                       prefix=self.prefix)

    def eager(self, parts: int) -> tuple[float, torch.Tensor]:
        self.model.zero_grad()
        halves = zip(self.input_ids.chunk(parts), self.labels.chunk(parts))
        losses = [self.loss(*part, self.n_labels) for part in halves]
        for loss in losses:
            loss.backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in self.parameters])
        self.model.zero_grad()
        return sum(losses).item(), gradients

    def captured(self, step: float = 0.0, direction: torch.Tensor | None = None) -> tuple[float, torch.Tensor]:
        """With the same dropout at every call; at parameters moved by ``step * direction``."""
        if self.pass_ is None:
            self.model.enable_input_require_grads()
            compile_layers(self.model, self.keep_fewer)
            self.pass_ = CapturedPass(self.loss, self.parameters, [tuple(self.labels.shape)])
        kept = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            if direction is not None:
                sizes = [parameter.numel() for parameter in self.parameters]
                for parameter, part in zip(self.parameters, direction.split(sizes)):
                    parameter.add_(part.view_as(parameter), alpha=float(step))
        self.model.zero_grad()
        torch.manual_seed(0)
        loss = self.pass_(self.input_ids, self.labels, self.n_labels).item()
        with torch.no_grad():
            for parameter, values in zip(self.parameters, kept):
                parameter.copy_(values)
        return loss, self.pass_.buffer.clone()


def _relative_difference(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor]) -> dict:
    return {"loss": abs(one[0] - other[0]) / other[0],
            "gradients": ((one[1] - other[1]).norm() / other[1].norm()).item()}


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder with Qwen2-1.5B, or with its config and tokenizer")
    parser.add_argument("--data", required=True, help="JSONL records; the first 16 make the batch")
    parser.add_argument("--output", default="results/captured_gradients.json")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gradients: needs a GPU", file=sys.stderr)
        return 2
    disable_progress_bars()
    with folder_and_rows(args.model, args.data, "cuda") as (folder, rows):
        found = {**captured_against_eager(folder, rows),
                 "keeping_fewer": captured_against_eager(folder, rows, keep_fewer=True)}
    write_json(args.output, {**found, "device": torch.cuda.get_device_name(),
                             "provenance": {"model": Path(args.model).name, "data": Path(args.data).name,
                                            **code_provenance()}})
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

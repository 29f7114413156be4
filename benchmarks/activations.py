"""What a decoder layer keeps for the backward pass, byte by byte: eager, compiled, checkpointed.

    python -m benchmarks.activations --model MODEL --output results/activations.json

Two layers of MODEL's architecture with random weights, a small vocabulary and LoRA, one batch under bf16 autocast. What
autograd keeps is counted storage by storage, parameters left out. This is arithmetic, not speed: a CPU will do.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from peft import get_peft_model
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM

from antifraud.compiling import compile_layers
from antifraud.model import default_device, locate_model
from antifraud.provenance import code_provenance, device_name
from antifraud.training.cuda_graphs import without_masks
from antifraud.training.loss import label_position_loss
from benchmarks import refusing_in_a_line
from data.files import write_json
from trainer import build_loraconfig

LAYERS, VOCABULARY = 2, 2000
ROWS, TOKENS, PREFIX, LABELS = 4, 128, 32, 6
# How the model is prepared before a pass.
WAYS: dict[str, Callable] = {
    "eager": lambda model: None,
    "compiled": compile_layers,
    "compiled, keeping fewer": lambda model: compile_layers(model, keep_fewer=True),
    "checkpointed": lambda model: model.gradient_checkpointing_enable({"use_reentrant": False}),
}


def make_model(folder: str, device: str):
    """The architecture in `folder`, cut to `LAYERS` layers, with LoRA as in training."""
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size = LAYERS, VOCABULARY
    text.pad_token_id, text.bos_token_id, text.eos_token_id = 0, 1, 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:LAYERS]
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), build_loraconfig())
    model.enable_input_require_grads()
    return model.to(device).train()


@contextlib.contextmanager
def keeping(counted: dict[str, int], but: Iterable[torch.Tensor]) -> Iterator[None]:
    """Within this context what autograd keeps counts, in bytes by dtype, each storage once and none of `but`."""
    seen = {tensor.untyped_storage().data_ptr() for tensor in but}
    held = []  # so that no other tensor gets the place of one that was counted

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held.append(tensor)
            dtype = str(tensor.dtype).removeprefix("torch.")
            counted[dtype] = counted.get(dtype, 0) + storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


def kept_bytes(model) -> dict[str, int]:
    """Bytes that one pass keeps for its backward pass, by dtype; embedding and output layer included."""
    device = next(model.parameters()).device
    rows = torch.randint(VOCABULARY, (ROWS, TOKENS), device=device)
    labels = torch.where(torch.arange(TOKENS, device=device) < TOKENS - LABELS, -100, rows)
    prefix = torch.arange(PREFIX, device=device)
    counted = {}

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16), without_masks():
            return label_position_loss(model, rows, labels, ROWS * LABELS, ROWS * LABELS, prefix)

    loss().backward()  # what is compiled is compiled here
    with keeping(counted, but=model.parameters()):
        loss()
    return counted


def run(model: str, *, device: str, output: str) -> dict:
    """All ways, each with a model of its own; written after each."""
    folder = locate_model(model)
    tokens = PREFIX + ROWS * TOKENS
    report = {"ways": {}, "device": device_name(device),
              "provenance": {"model": Path(model).resolve().name, "layers": LAYERS, "tokens": tokens,
                             **code_provenance()}}
    for way, prepare in tqdm(WAYS.items(), desc="ways"):
        torch._dynamo.reset()
        made = make_model(folder, device)
        prepare(made)
        report["ways"][way] = {name: size / tokens / LAYERS for name, size in sorted(kept_bytes(made).items())}
        write_json(output, report)
    return report


def table(report: dict) -> str:
    """KiB a token and layer, by dtype, as a Markdown table."""
    dtypes = [name for name in ("bfloat16", "float32", "bool")
              if any(name in found for found in report["ways"].values())]
    lines = [f"| layers | KiB a token and layer | of it {' | '.join(dtypes)} |", "|---|---|" + "---|" * len(dtypes)]
    for way, found in report["ways"].items():
        cells = [f"{found.get(name, 0) / 1024:.1f}" for name in dtypes]
        lines.append(f"| {way} | {sum(found.values()) / 1024:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.activations", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder with a model, or with its config alone")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/activations.json")
    args = parser.parse_args(argv)
    report = run(args.model, device=args.device, output=args.output)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What each choice costs in memory and time: quantisation, optimiser, length of the rows, rows in a batch.

    python -m benchmarks.studies --model MODEL --output results/studies.json [--studies quantization optimizers ...]

MODEL is a folder with Qwen2-1.5B-Instruct, or with its config and tokenizer alone: neither memory nor speed depends on
what the weights are. (The quantisation error does: random weights are normally distributed, as trained ones nearly
are.) Every study changes one thing and keeps the rest: the article's LoRA on NF4, batches of 16 random rows of 176
tokens, checkpointed activations, logits at the label positions. A step is a forward and a backward pass, launched
kernel by kernel. The report is written after each study, and a picture of it at the end. On a CPU the points are few
and small, there is no peak, and the figures say that it runs, no more.
"""

import argparse
import dataclasses
import functools
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from peft import get_peft_model
from safetensors import safe_open
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from antifraud.figures import BLUE, GREEN, GREY, ORANGE, _save, _style
from antifraud.model import compute_dtype, default_device, locate_model, pick_device
from antifraud.provenance import code_provenance, device_name
from antifraud.training.loss import label_position_loss
from antifraud.training.recipes import CHECKPOINTING
from benchmarks import refusing_in_a_line
from benchmarks.training import folder_with_weights
from data.files import DataError, write_json
from evaluate import load_model
from trainer import build_loraconfig

ANSWER_TOKENS = 7  # with labels, at the end of a row
VARIANTS = {  # what `load_model` is told
    "none": {"quantization": "none"},
    "fp4": {"quantization": "fp4"},
    "nf4": {"quantization": "nf4"},
    "nf4_double": {"quantization": "nf4", "double_quantization": True},
}
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit")
ALL_LOGITS_UP_TO = 512  # tokens a row; the logits of 16 rows of 1,024 are 5 GiB in 16 bit, and several copies of it
WARM_UP, TIMED = 1, 3  # steps of a point
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Points:
    """Where a step is measured: `rows` and `tokens` a row, unless one of the two is what is studied."""

    rows: int = 16  # the article's batch
    tokens: int = 176  # the mean of the data, padded
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)


POINTS = {"cuda": Points(), "cpu": Points(rows=4, tokens=32, lengths=(16, 32, 64), batch_sizes=(1, 2, 4))}


# -------------------------------------------------------------------------------------------------- one step


def with_adapters(model: nn.Module) -> nn.Module:
    """`model` with the article's LoRA and checkpointed activations, ready to train."""
    model = get_peft_model(model, build_loraconfig())
    getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    return model.train()


def random_batch(model: nn.Module, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``labels``, both [rows, tokens]; only the last few tokens of a row have labels."""
    input_ids = torch.randint(model.config.vocab_size, (rows, tokens), device=model.device)
    labels = input_ids.clone()
    labels[:, :-ANSWER_TOKENS] = -100
    return {"input_ids": input_ids, "labels": labels}


def all_logits_loss(model: nn.Module, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The model's own loss, for which it computes the logits of every token: what the article's recipe does."""
    return model(input_ids=input_ids, labels=labels, use_cache=False).loss


def measure_step(model: nn.Module, loss: Callable[..., torch.Tensor], rows: int, tokens: int) -> dict | None:
    """Peak memory and time of forward and backward.

    Returns:
        ``peak_gib``: allocated at most, weights included, in GiB (None on a CPU); ``seconds``: the median of the
        timed steps. None where the memory does not suffice.
    """
    free_memory(model.device)
    try:
        batch = random_batch(model, rows, tokens)
        seconds = [timed(lambda: _step(model, loss, batch), model.device) for _ in range(WARM_UP + TIMED)]
    except torch.OutOfMemoryError:
        return None
    finally:
        model.zero_grad()
    return {"peak_gib": _peak_gib(model.device), "seconds": statistics.median(seconds[WARM_UP:])}


def _step(model: nn.Module, loss: Callable[..., torch.Tensor], batch: dict[str, torch.Tensor]) -> None:
    model.zero_grad()
    dtype = compute_dtype(str(model.device))
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not torch.float32):
        value = loss(model, **batch)
    value.backward()


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds that `action` takes, the device's work included."""
    _wait_for(device)
    started = time.perf_counter()
    action()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Gives back what nothing refers to any more; the peak is counted from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


# ------------------------------------------------------------------------------------------------ the studies


def study_quantization(folder: str, device: torch.device, points: Points,
                       variants: Mapping[str, dict] = VARIANTS) -> dict[str, dict]:
    """Load time, size, error and a step of LoRA training for each way to store the base weights."""
    return {name: _measure_variant(folder, device, points, options)
            for name, options in tqdm(variants.items(), desc="quantization")}


def _measure_variant(folder: str, device: torch.device, points: Points, options: dict) -> dict:
    free_memory(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    started = time.perf_counter()
    model, _ = load_model(folder, str(device), **options)
    _wait_for(device)
    found = {"load_seconds": time.perf_counter() - started,
             "weights_gib": (_weight_bytes(model, device) - before) / GIB,
             **storage_of_linear_weights(model, folder)}
    step = measure_step(with_adapters(model), label_position_loss, points.rows, points.tokens)
    return {**found, **(step or {"peak_gib": None, "seconds": None})}


def _weight_bytes(model: nn.Module, device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return sum(parameter.nbytes for parameter in model.parameters())


@torch.no_grad()
def storage_of_linear_weights(model: nn.Module, folder: str) -> dict[str, float]:
    """How the linear weights of the decoder are stored, against those in the files of `folder`.

    Returns:
        ``relative_error``: RMS of (loaded - saved) over RMS of saved; ``bits_per_weight``: quantisation constants
        included.
    """
    layers = {f"{name}.weight": layer.weight for name, layer in model.named_modules()
              if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings()}
    error = power = torch.zeros((), dtype=torch.float64, device=model.device)
    n_weights = n_bytes = 0
    for name, saved in _saved_tensors(folder):
        if name in layers:
            weight = layers.pop(name)
            saved = saved.to(model.device).float()
            error = error + (_values(weight).float() - saved).square().sum(dtype=torch.float64)
            power = power + saved.square().sum(dtype=torch.float64)
            n_weights, n_bytes = n_weights + saved.numel(), n_bytes + _stored_bytes(weight)
    if layers or not n_weights:
        raise DataError(f"{folder}: its files do not hold the linear weights under the model's own names")
    return {"relative_error": (error / power).sqrt().item(), "bits_per_weight": 8 * n_bytes / n_weights}


def _saved_tensors(folder: str) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)


def _values(weight: torch.Tensor) -> torch.Tensor:
    state = getattr(weight, "quant_state", None)
    return weight if state is None else dequantize_4bit(weight.data, state)


def _stored_bytes(weight: torch.Tensor) -> int:
    """Bytes of a weight and of its blocks' constants; double quantisation makes those 8 bit, with constants again."""
    state = getattr(weight, "quant_state", None)
    constants = [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]
    return weight.data.nbytes + sum(tensor.nbytes for tensor in constants)


def study_optimizers(model: nn.Module, names: Iterable[str] = OPTIMIZERS) -> dict[str, dict]:
    """``optimizer.step()`` over the LoRA parameters, for each name that ``TrainingArguments.optim`` may have."""
    free_memory(model.device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    found = {name: _measure_optimizer(name, model, parameters) for name in tqdm(list(names), desc="optimizers")}
    model.zero_grad()
    return found


def _measure_optimizer(name: str, model: nn.Module, parameters: Sequence[nn.Parameter]) -> dict:
    args = TrainingArguments(optim=name, use_cpu=model.device.type == "cpu", report_to="none")
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    optimizer = optimizer_class(parameters, **options)
    seconds = [timed(optimizer.step, model.device) for _ in range(WARM_UP + TIMED)]
    return {"seconds": statistics.median(seconds[WARM_UP:]), **state_bytes(optimizer)}


def state_bytes(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of an optimiser's state: on the parameters' device, and in managed memory, which moves between CPU and GPU.

    bitsandbytes pages tensors of 100,000 elements and more.
    """
    found = {"state_bytes_on_device": 0, "state_bytes_managed": 0}
    tensors = {tensor.data_ptr(): tensor for state in optimizer.state.values() for tensor in state.values()
               if torch.is_tensor(tensor) and tensor.dim()}  # tables that parameters share count once, steps never
    for tensor in tensors.values():
        managed = getattr(tensor, "is_paged", False)
        found["state_bytes_managed" if managed else "state_bytes_on_device"] += tensor.nbytes
    return found


def study_lengths(model: nn.Module, points: Points) -> dict[str, dict]:
    """A step by tokens a row: with logits at every token, and at those with labels only."""
    found = {}
    for tokens in tqdm(points.lengths, desc="lengths"):
        point = found[str(tokens)] = {}
        if tokens <= ALL_LOGITS_UP_TO:
            point["all_logits"] = measure_step(model, all_logits_loss, points.rows, tokens)
        point["label_positions"] = measure_step(model, label_position_loss, points.rows, tokens)
    return found


def study_batch_sizes(model: nn.Module, points: Points) -> dict[str, dict | None]:
    """A step by rows in a batch, and the samples a second that it comes to."""
    found = {}
    for rows in tqdm(points.batch_sizes, desc="batch sizes"):
        point = measure_step(model, label_position_loss, rows, points.tokens)
        found[str(rows)] = point and {**point, "samples_per_second": rows / point["seconds"]}
    return found


STUDIES = ("quantization", "optimizers", "lengths", "batch_sizes")  # in this order: the first needs an empty device


def run(model: str, output: str | Path, *, studies: Iterable[str] = STUDIES, device: str = "cuda",
        points: Points | None = None) -> dict:
    """Makes the studies in turn and writes `output` after each of them; returns the report."""
    where = torch.device(pick_device(device))
    points = points or POINTS[where.type]
    report = {"device": device_name(where),
              "provenance": _provenance(model, points)}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_with_weights(locate_model(model), scratch, str(where))
        tuned = functools.cache(lambda: with_adapters(load_model(folder, str(where))[0]))
        make = {"quantization": lambda: study_quantization(folder, where, points),
                "optimizers": lambda: study_optimizers(tuned()),
                "lengths": lambda: study_lengths(tuned(), points),
                "batch_sizes": lambda: study_batch_sizes(tuned(), points)}
        for study in STUDIES:
            if study in studies:
                report[study] = make[study]()
                write_json(output, report)
    return report


def _provenance(model: str, points: Points) -> dict:
    return {"model": Path(model).resolve().name, "rows": points.rows, "tokens": points.tokens, "steps": TIMED,
            **code_provenance()}


# ------------------------------------------------------------------------------------- what they are shown as


def table(report: dict) -> str:
    """The studies that `report` holds, a line a point; ``-`` where memory did not suffice or is not counted."""
    lines = []
    for name, row in report.get("quantization", {}).items():
        lines.append(f"quantization {name:<18} {row['bits_per_weight']:.2f} bits a weight, error "
                     f"{row['relative_error']:.4f}, weights {row['weights_gib']:.3f} GiB, loaded in "
                     f"{row['load_seconds']:.1f} s; {_step_text(row)}")
    for name, row in report.get("optimizers", {}).items():
        on_device, managed = (row[key] / 2**20 for key in ("state_bytes_on_device", "state_bytes_managed"))
        lines.append(f"optimizer    {name:<18} {1000 * row['seconds']:.1f} ms, state {on_device:.0f} MiB on "
                     f"the device, {managed:.0f} managed")
    for tokens, point in report.get("lengths", {}).items():
        for loss, row in point.items():
            lines.append(f"length       {tokens:>5} {loss:<16} {_step_text(row)}")
    for rows, row in report.get("batch_sizes", {}).items():
        rate = f", {row['samples_per_second']:.1f} samples/s" if row else ""
        lines.append(f"batch size   {rows:>5} {'rows':<12} {_step_text(row)}{rate}")
    return "\n".join(lines)


def _step_text(row: dict | None) -> str:
    if row is None or row["seconds"] is None:
        return "out of memory"
    peak = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}"
    return f"peak {peak} GiB, {row['seconds']:.3f} s"


def studies_figure(report: dict):
    """Four panels, one a study; a panel stays empty where its study, or its memory (on a CPU), is not known."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, (study, draw) in zip(panels, DRAWN.items()):
        draw(axes, report.get(study, {}))
    return figure


def _draw_lengths(axes, points: dict) -> None:
    _style(axes, "Memory by length of the rows", "tokens a row", "peak allocated (GiB)")
    for loss, color, label in (("all_logits", ORANGE, "logits of all tokens"),
                               ("label_positions", BLUE, "logits at label positions")):
        _plot(axes, {tokens: point.get(loss) for tokens, point in points.items()}, "peak_gib", color, label)
    _legend(axes)


def _draw_batch_sizes(axes, points: dict) -> None:
    _style(axes, "Speed and memory by batch size", "rows a batch", "samples a second")
    _plot(axes, points, "samples_per_second", BLUE, "samples a second")
    axes.yaxis.label.set_color(BLUE)
    memory = axes.twinx()
    _plot(memory, points, "peak_gib", ORANGE, "peak allocated")
    memory.set_ylabel("peak allocated (GiB)", color=ORANGE)
    memory.spines["top"].set_visible(False)
    axes.set_xscale("log", base=2)
    axes.set_xticks([int(rows) for rows in points], list(points))


def _plot(axes, points: dict, figure: str, color: str, label: str) -> None:
    known = [(int(at), row[figure]) for at, row in points.items() if row and row[figure] is not None]
    if known:
        axes.plot(*zip(*known), color=color, marker="o", markersize=4, label=label)
        axes.set_ylim(bottom=0)


def _draw_quantization(axes, variants: dict) -> None:
    _style(axes, "Base weights, and what quantisation changes in them", "", "GiB")
    axes.bar(list(variants), [row["weights_gib"] for row in variants.values()], color=BLUE, width=0.6)
    for name, row in variants.items():
        axes.text(name, row["weights_gib"], f"{row['bits_per_weight']:.2f} bits\n"
                  f"error {row['relative_error']:.1%}", ha="center", va="bottom", color=GREY)
    axes.set_axisbelow(True)
    axes.margins(y=0.2)


def _draw_optimizers(axes, optimizers: dict) -> None:
    _style(axes, "Optimiser step over the LoRA parameters", "ms", "")
    for name, row in reversed(optimizers.items()):  # the first one on top
        axes.barh(name, 1000 * row["seconds"], color=GREEN)
        mib = (row["state_bytes_on_device"] + row["state_bytes_managed"]) / 2**20
        managed = ", managed" if row["state_bytes_managed"] else ""
        axes.text(1000 * row["seconds"], name, f" {mib:.0f} MiB of state{managed}", va="center", color=GREY)
    axes.set_axisbelow(True)
    axes.margins(x=0.4)


def _legend(axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


DRAWN = {"lengths": _draw_lengths, "batch_sizes": _draw_batch_sizes, "quantization": _draw_quantization,
         "optimizers": _draw_optimizers}


@refusing_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder with Qwen2-1.5B, or with its config and tokenizer")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", default="results/studies.json", help="a picture goes beside it")
    args = parser.parse_args(argv)
    disable_progress_bar()
    report = run(args.model, args.output, studies=args.studies, device=args.device)
    picture = _save(studies_figure(report), Path(args.output).with_suffix(".png"))
    print(table(report))
    print(f"written to {args.output} and {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

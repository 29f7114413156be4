"""How the same steps are computed: arguments, recipes, and what each needs."""

import dataclasses
import os
import sys
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from data.files import DataError

from ..compiling import NOT_COMPILED, can_compile

# Names that transformers 5 removed or renamed. Assigning them after construction would be ignored in silence.
LATE_NAMES = {
    "warmup_ratio": "warmup_steps",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
# The first is its name since transformers 5.20.
CHECKPOINTING = next(name for name in ("activation_checkpointing", "gradient_checkpointing")
                     if name in {field.name for field in dataclasses.fields(TrainingArguments)})
SHARDABLE_OPTIMIZER = "adamw_torch"  # bitsandbytes' optimisers step whole tensors only
# What 4-bit weights lie in where they are sharded, which takes floating-point numbers. In 16 bit a GPU
# gathers them through 32 bit, and pairs of bytes that read as NaN come out as another NaN: other weights.
SHARDED_STORAGE = torch.float32
# Three ways to compute the same steps: on every GPU, in little memory, or fast.
RECIPES = {
    "plain": {CHECKPOINTING: True, "optim": "paged_adamw_32bit", "tokens_per_micro_batch": 4096},
    "small": {CHECKPOINTING: False, "optim": "paged_adamw_32bit", "tokens_per_micro_batch": 512, "cuda_graphs": True,
              "selective_recomputation": True},
    "fast": {CHECKPOINTING: False, "optim": "adamw_torch_fused", "tokens_per_micro_batch": 4096, "cuda_graphs": True},
}
# What `fast` needs for Qwen2-1.5B: see results/speed/training.json, with a reserve of a third.
BYTES_A_TOKEN = 3.5 * 2**20  # of a micro-batch
BYTES_A_TOKEN_RECOMPUTING = 2.5 * 2**20
BYTES_APART = 3 * 2**30  # weights, adapters, optimiser
FEWEST_TOKENS = 1024  # a micro-batch; with less, too many of them a step


@dataclass
class FraudTrainingArguments(TrainingArguments):
    """TrainingArguments and five of our own. Fields may be assigned afterwards, under transformers 4's names too.

    A name that this version of transformers does not know is refused; the base class would ignore it.
    """

    cuda_graphs: bool = field(default=False, metadata={
        "help": "Replay each micro-batch as a CUDA graph; bf16, the model whole on each GPU."})
    compile_layers: bool | None = field(default=None, metadata={
        "help": "Fuse small kernels, which takes a minute to compile; default: with CUDA graphs, in a long run, and "
                "with selective recomputation."})
    selective_recomputation: bool = field(default=False, metadata={
        "help": "Compiled layers keep a third less for the backward pass, which computes it again. Same gradients."})
    tokens_per_micro_batch: int = field(default=0, metadata={
        "help": "Cut a batch into micro-batches of at most so many tokens, padding included; 0: one. Same gradients."})
    line_loss_weight: float = field(default=0.0, metadata={
        "help": "Auxiliary line loss: learn of each line, too, whether it is part of a fraud. A line counts so much, a "
                "token of the answer 1."})

    def __setattr__(self, name: str, value) -> None:
        if getattr(self, "_constructed", False) and not name.startswith("_") and name not in ARGUMENT_NAMES:
            if LATE_NAMES.get(name) not in ARGUMENT_NAMES and not hasattr(self, name):
                raise AttributeError(f"TrainingArguments has no {name!r} in this version of transformers")
        super().__setattr__(name_now(name) if getattr(self, "_constructed", False) else name, value)


ARGUMENT_NAMES = {field.name for field in dataclasses.fields(FraudTrainingArguments)}


def name_now(name: str) -> str:
    """What this version of transformers calls a field that had `name` in version 4."""
    return LATE_NAMES[name] if LATE_NAMES.get(name) in ARGUMENT_NAMES else name


def choose_recipe(recipe: str, dtype: torch.dtype, compile_layers: bool | None = None, **given) -> dict:
    """The settings of `recipe`, or those for the memory that is free; says in a line what will be computed with.

    Args:
        compile_layers: whether layers are to be compiled, which selective recomputation needs; default: where that is
            possible.
        given: fields of TrainingArguments that somebody chose, which count instead of the recipe's.
    """
    compiles = can_compile() if compile_layers is None else compile_layers
    if recipe not in ("auto", *RECIPES):
        raise DataError(f"recipe must be auto, {', '.join(RECIPES)}, not {recipe!r}")
    free, _ = torch.cuda.mem_get_info()
    if recipe == "auto":
        settings = RECIPES["plain"] if sharded() or dtype is not torch.bfloat16 else settings_for(free, compiles)
    else:
        settings = RECIPES[recipe]
    settings = shardable(settings)
    if not compiles:
        settings = {name: value for name, value in settings.items() if name != "selective_recomputation"}
    settings = {**settings, **{name: value for name, value in given.items() if name in RECIPES["small"]}}
    if is_first_local_process():
        said = [f"{name} {value}" for name, value in settings.items()]
        if settings.get("cuda_graphs") and compile_layers is None and not compiles:
            said.append(NOT_COMPILED)
        print(f"recipe {recipe}, {dtype}, {free / 2**30:.0f} GiB free: {', '.join(said)}", file=sys.stderr)
    return settings


def sharded() -> bool:
    """Whether ``accelerate launch`` was told to shard the model."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def shardable(settings: dict) -> dict:
    """`settings`, with an optimiser that can step a sharded model where the model will be one."""
    return {**settings, "optim": SHARDABLE_OPTIMIZER} if sharded() else settings


def settings_for(free: int, compiles: bool = True) -> dict:
    """CUDA graphs with micro-batches as large as `free` bytes allow, or the recipe for little memory.

    Where the largest do not fit, compiled layers recompute selectively: that costs less time than more micro-batches.
    """
    fast, headroom = RECIPES["fast"], free - BYTES_APART
    if headroom >= fast["tokens_per_micro_batch"] * BYTES_A_TOKEN:
        return fast
    tokens = int(headroom / (BYTES_A_TOKEN_RECOMPUTING if compiles else BYTES_A_TOKEN)) // 512 * 512
    if tokens < FEWEST_TOKENS:
        return RECIPES["small"]
    tokens = min(tokens, fast["tokens_per_micro_batch"])
    return {**fast, "tokens_per_micro_batch": tokens, "selective_recomputation": compiles}


def is_first_local_process() -> bool:
    """Whether this is the process that prints, of those that ``accelerate launch`` started on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"

"""``trainer.py`` with its model sharded (FSDP2) on CPUs, where Accelerate falls back to DDP without a word.

Writes to standard error how many parameters, and how many of the 4-bit ones, are sharded.
"""

import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import trainer

initialise, build_trainer = AcceleratorState.__init__, trainer.build_trainer


def initialise_sharded(self, *args, fsdp_plugin=None, **kwargs) -> None:
    initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


class TellsWhatIsSharded(TrainerCallback):
    told = False

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if self.told:
            return
        self.told = True
        parameters = dict(model.named_parameters())
        base = [name for name in parameters if name.endswith("base_layer.weight")]
        for what, names in (("parameters", parameters), ("4-bit weights", base)):
            sharded = sum(isinstance(parameters[name], DTensor) for name in names)
            print(f"sharded: {sharded} of {len(names)} {what}", file=sys.stderr)


def build_telling_trainer(*args, **kwargs):
    built = build_trainer(*args, **kwargs)
    built.add_callback(TellsWhatIsSharded())
    return built


if __name__ == "__main__":
    AcceleratorState.__init__ = initialise_sharded
    trainer.build_trainer = build_telling_trainer
    sys.exit(trainer.main())

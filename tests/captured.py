"""Captured micro-batches on a machine without a GPU."""

from antifraud.training import micro_batches, settings
from antifraud.training.cuda_graphs import CapturedMicroBatch


class EagerMicroBatch(CapturedMicroBatch):
    """For a machine without a GPU: the same loss and gradients as the captured ones, computed at once."""

    made: list["EagerMicroBatch"] = []

    def __init__(self, loss, parameters, shapes, names, warming_up=None):
        self._allocate_gradients(parameters)
        self.loss, self.expected, self.shapes, self.warming_up = loss, shapes, [], warming_up
        EagerMicroBatch.made.append(self)

    def __call__(self, inputs, n_labels):
        self.shapes.append(tuple(inputs["input_ids"].shape))
        if self.parameters[0].grad is None:
            self.buffer.zero_()
            self._lend_gradients()
        loss = self.loss(inputs, n_labels)
        loss.backward()
        return loss.detach()


def capture_on_cpu(set_attribute=setattr) -> None:
    """Lets a run with CUDA graphs take its way through the trainer on a CPU."""
    set_attribute(settings, "require_capturable", lambda args: None)
    set_attribute(micro_batches, "CapturedMicroBatch", EagerMicroBatch)
    set_attribute(micro_batches, "can_compile", lambda: True)

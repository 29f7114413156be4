"""Forward and backward of a micro-batch as one CUDA graph: the GPU replays whole what the CPU launched by kernel.

A step of Qwen2-1.5B is thousands of small kernels, and a fast GPU waits for the CPU most of the time. Forward and
backward of each shape are therefore captured once and replayed (torch.cuda.CUDAGraph). Compiling the decoder
layers first (torch.compile) fuses what is small in them: casts, dropout, norms, activations.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import masking_utils

from ..logits import replaced
from .batches import IGNORED

NO_MASKS = {"is_tracing": lambda tensor=None: False, "find_packed_sequence_indices": lambda position_ids: None}


def without_masks() -> contextlib.AbstractContextManager:
    """A context within which transformers leaves out an attention mask where causal attention needs none.

    It does so otherwise too, but to see whether a batch is packed it waits for the GPU, which a capture must not,
    and while a graph is captured it prefers a mask, which keeps attention off its fastest kernel.
    """
    return replaced(masking_utils, **NO_MASKS)


@contextlib.contextmanager
def first_layers(model) -> Iterator[None]:
    """Within this context only as many of the first layers run as there are kinds of them, and two at least.

    They run the kernels that all layers run; the second one also those of gradients for its input, which the first has
    no need of. A model that does not ask its config how many layers it has runs all of them.
    """
    config = model.config.get_text_config()
    kinds, layers = getattr(config, "layer_types", None) or [None], config.num_hidden_layers
    config.num_hidden_layers = min(layers, max(2, *(kinds.index(kind) + 2 for kind in set(kinds))))
    try:
        yield
    finally:
        config.num_hidden_layers = layers


class CapturedMicroBatch:
    """Loss and gradients of a batch, by replaying the CUDA graph of its shape.

    Gradients accumulate in one buffer that all graphs write to; ``.grad`` of the parameters are views of it. Graphs
    share one memory pool, so that all of them need as much as the largest, which is captured first; the others are
    captured when they occur.
    """

    def __init__(self, loss: Callable[..., torch.Tensor], parameters: Sequence[torch.nn.Parameter],
                 shapes: Sequence[tuple[int, int]], names: Sequence[str],
                 warming_up: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext) -> None:
        """
        Args:
            loss: ``loss(inputs, n_labels)``, in which nothing waits for the device.
            parameters: what is trained, all of one dtype.
            shapes: rows and tokens a row of the micro-batches that may come.
            names: of the inputs, ``input_ids`` and what there is to learn; each [rows, tokens].
            warming_up: a context in which every shape is run once, such as `first_layers`, to spare time.
        """
        largest = max(shapes, key=math.prod)
        self.loss = loss
        self._allocate_gradients(parameters)
        self._allocate_inputs(names, math.prod(largest))
        self.stream = torch.cuda.Stream()  # every backward runs on it: a capture refuses what began on another
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._warm_up([largest])
        with warming_up():
            self._warm_up(shapes)
        self._capture(largest)

    def __call__(self, inputs: dict[str, torch.Tensor], n_labels) -> torch.Tensor:
        """The loss of a micro-batch; adds its gradients to those since the last ``zero_grad()``."""
        shape = tuple(inputs["input_ids"].shape)
        if self.parameters[0].grad is None:
            self.buffer.zero_()
            self._lend_gradients()
        if shape not in self.graphs:
            self._capture(shape)
        graph, loss = self.graphs[shape]
        for name, part in self._inputs(shape).items():
            part.copy_(inputs[name])
        self.n_labels.copy_(torch.as_tensor(n_labels))
        graph.replay()
        return loss.clone()  # the next replay writes to the same place

    def gradient_norm(self) -> torch.Tensor:
        """The norm of all gradients together."""
        return torch.linalg.vector_norm(self.buffer)

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Scales the gradients down to `max_norm`, as `torch.nn.utils.clip_grad_norm_` does; returns what it was."""
        norm = self.gradient_norm()
        self.buffer.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def average_gradients(self, processes: int) -> None:
        """Makes the gradients the mean over all processes, as DDP does, in one reduction of the whole buffer."""
        torch.distributed.all_reduce(self.buffer)
        self.buffer.div_(processes)

    def _allocate_inputs(self, names: Sequence[str], tokens: int) -> None:
        self.inputs = {name: torch.full((tokens,), 0 if name == "input_ids" else IGNORED, device=self.buffer.device)
                       for name in names}
        self.n_labels = torch.ones((), device=self.buffer.device)

    def _inputs(self, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {name: whole[:math.prod(shape)].view(shape) for name, whole in self.inputs.items()}

    def _allocate_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first, sizes = self.parameters[0], [parameter.numel() for parameter in self.parameters]
        self.buffer = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        self.gradients = [part.view_as(parameter) for part, parameter in zip(self.buffer.split(sizes), self.parameters)]

    def _lend_gradients(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient

    def _warm_up(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Runs a micro-batch of each shape: kernels are compiled and libraries initialised; a capture must not.

        Every shape, since some are compiled apart (a single row, rows longer than a sliding window); and before the
        first capture, while the memory is not yet the graphs'.
        """
        self._lend_gradients()
        with torch.random.fork_rng([self.buffer.device]), without_masks():
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for shape in shapes:
                    self.loss(self._inputs(shape), self.n_labels).backward()
            torch.cuda.current_stream().wait_stream(self.stream)
        self.buffer.zero_()

    def _capture(self, shape: tuple[int, int]) -> None:
        """Captures a shape; leaves gradients and random state as they were."""
        inputs = self._inputs(shape)
        kept = self.buffer.cpu()  # where it costs the GPU no memory
        self._lend_gradients()
        # Of several processes, a thread asks CUDA how far what was sent to the others is.
        mode = "thread_local" if torch.distributed.is_initialized() else "global"
        # A layer may be compiled anew for reasons that no warm-up foresees (rows beyond a sliding window, say), and a
        # capture is no place for it. What is not compiled by now is captured as it is.
        with (torch.random.fork_rng([self.buffer.device]), without_masks(),
              torch.compiler.set_stance("eager_on_recompile")):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode=mode):
                loss = self.loss(inputs, self.n_labels)
                loss.backward()
        self.buffer.copy_(kept)
        self.graphs[shape] = graph, loss.detach()

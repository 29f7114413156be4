"""A forward and backward pass as one CUDA graph: what the CPU launched kernel by kernel, the GPU replays whole.

A step of Qwen2-1.5B is thousands of small kernels, and a fast GPU waits for the CPU most of the time. Forward and
backward of each batch shape are therefore captured once and replayed (torch.cuda.CUDAGraph). Compiling the decoder
layers first (torch.compile) fuses what is small in them: casts, dropout, norms, activations.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch


@contextlib.contextmanager
def without_masks():
    """Within this context transformers leaves out an attention mask where causal attention needs none.

    It does so otherwise too, but to see whether a batch is packed it waits for the GPU, which a capture must not,
    and while a graph is captured it prefers a mask, which keeps attention off its fastest kernel.
    """
    with patch.multiple("transformers.masking_utils", is_tracing=lambda tensor=None: False,
                        find_packed_sequence_indices=lambda position_ids: None):
        yield


class CapturedPass:
    """Loss and gradients of a batch, by replaying the CUDA graph of its shape.

    Gradients accumulate in one buffer that all graphs write to; ``.grad`` of the parameters are views of it. Graphs
    share one memory pool, so that all of them need as much as the largest, which is captured first; the others are
    captured when they occur.
    """

    def __init__(self, loss: Callable[..., torch.Tensor], parameters: Sequence[torch.nn.Parameter],
                 shapes: Sequence[tuple[int, int]]) -> None:
        """
        Args:
            loss: ``loss(input_ids, labels, n_labels)``, in which nothing waits for the device.
            parameters: what is trained, all of one dtype.
            shapes: rows and tokens a row of the batches that may come.
        """
        largest = max(shapes, key=math.prod)
        self.loss = loss
        self._allocate_gradients(parameters)
        self.input_ids = torch.zeros(largest[0] * largest[1], dtype=torch.long, device=self.buffer.device)
        self.labels = torch.full_like(self.input_ids, -100)
        self.n_labels = torch.ones((), device=self.buffer.device)
        self.stream = torch.cuda.Stream()  # every backward runs on it: a capture refuses what began on another
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._warm_up([largest, *shapes])
        self._capture(largest)

    def __call__(self, input_ids: torch.Tensor, labels: torch.Tensor, n_labels) -> torch.Tensor:
        """The loss of a batch, [rows, tokens]; adds its gradients to those since the last ``zero_grad()``."""
        shape = tuple(input_ids.shape)
        if self.parameters[0].grad is None:
            self.buffer.zero_()
            self._lend_gradients()
        if shape not in self.graphs:
            self._capture(shape)
        graph, loss = self.graphs[shape]
        for part, values in zip(self._inputs(shape), (input_ids, labels, torch.as_tensor(n_labels))):
            part.copy_(values)
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

    def _inputs(self, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = shape[0] * shape[1]
        return self.input_ids[:tokens].view(shape), self.labels[:tokens].view(shape), self.n_labels

    def _allocate_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first, sizes = self.parameters[0], [parameter.numel() for parameter in self.parameters]
        self.buffer = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        self.gradients = [part.view_as(parameter) for part, parameter in zip(self.buffer.split(sizes), self.parameters)]

    def _lend_gradients(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient

    def _warm_up(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Runs a pass of each shape: kernels are compiled and libraries initialised, which a capture must not do.

        Every shape, since some are compiled apart (a single row, rows longer than a sliding window); and before the
        first capture, while the memory is not yet the graphs'.
        """
        self._lend_gradients()
        with torch.random.fork_rng([self.buffer.device]), without_masks():
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for shape in shapes:
                    self.loss(*self._inputs(shape)).backward()
            torch.cuda.current_stream().wait_stream(self.stream)
        self.buffer.zero_()

    def _capture(self, shape: tuple[int, int]) -> None:
        """Captures a shape; leaves gradients and random state as they were."""
        inputs = self._inputs(shape)
        kept = self.buffer.cpu()  # where it costs the GPU no memory
        self._lend_gradients()
        # A layer may be compiled anew for reasons that no warm-up foresees, and a capture is no place for it: the
        # stand-in's rows beyond its window ended trainings so. What is not compiled by now is captured as it is.
        with (torch.random.fork_rng([self.buffer.device]), without_masks(),
              torch.compiler.set_stance("eager_on_recompile")):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                loss = self.loss(*inputs)
                loss.backward()
        self.buffer.copy_(kept)
        self.graphs[shape] = graph, loss.detach()

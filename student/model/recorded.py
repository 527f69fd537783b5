"""A student's pass and its gradient as two CUDA graphs: thousands of small launches become two.

Kernels of a small student take less time than their launches from Python. What is recorded is replayed for every
micro-batch of the shape of the first one; others, and passes without gradients, run as ever.
"""

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from delta_common.installed import has_triton

VECTOR_BYTES = 16
"""What compiled code reads at once, from addresses that are multiples of it."""


def can_compile(student: nn.Module) -> bool:
    """Whether its parts may run compiled: in 16 bits on a GPU, whole parameters at places a vector load can take.

    ZeRO 1 and 2 move parameters to any place, and under ZeRO 3 they are empty until a layer is called.
    """
    parameters = list(student.parameters())
    fits = parameters[0].is_cuda and parameters[0].element_size() == 2 and has_triton()
    return fits and all(p.numel() and p.data_ptr() % VECTOR_BYTES == 0 for p in parameters)


def record_passes(student: nn.Module, *, accumulates: bool) -> None:
    """Have the student record its first pass with gradients, and replay it.

    The parameters may change their values afterwards, not their places in memory. A replay gives their gradients in the
    same memory every time: where they are added up over passes (`accumulates`) they are copied, else they must be used
    before the next.
    """
    object.__setattr__(student, "forward", _RecordedPass(student.forward, student, accumulates))


class _Pass(nn.Module):
    """A student's pass over tokens and document starts."""

    def __init__(self, student: nn.Module, forward: Callable[..., Tensor], options: dict[str, bool]) -> None:
        super().__init__()
        self.student, self._forward, self._options = student, forward, options

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._forward(*inputs, **self._options)

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def as_function(self, *tensors: Tensor) -> Tensor:
        """The pass over its inputs, with the tensors behind them in place of what is trained."""
        names = list(self.trained())
        count = len(tensors) - len(names)
        found: Tensor = functional_call(self, dict(zip(names, tensors[count:], strict=True)), tensors[:count])
        return found


class _RecordedPass:
    """In place of a student's `forward`."""

    def __init__(self, forward: Callable[..., Tensor], student: nn.Module, accumulates: bool) -> None:
        self._forward, self._student, self._accumulates = forward, student, accumulates
        self._key: object = None
        self._replay: Callable[..., Tensor] | None = None

    def __call__(self, tokens: Tensor, document_start: Tensor | None = None, **options: bool) -> Tensor:
        inputs = (tokens,) if document_start is None else (tokens, document_start)
        key = (tokens.shape, len(inputs), tuple(options.items()))
        if not torch.is_grad_enabled():
            return self._forward(tokens, document_start, **options)
        if self._replay is None:
            self._key, self._replay = key, self._recorded(inputs, options)
        return self._replay(*inputs) if key == self._key else self._forward(tokens, document_start, **options)

    def _recorded(self, inputs: tuple[Tensor, ...], options: dict[str, bool]) -> Callable[..., Tensor]:
        run = _Pass(self._student, self._forward, options)
        trained = tuple(run.trained().values())
        # Recorded with stand-ins in the same memory: torch would also record what hooks on the parameters themselves
        # wait for, as ZeRO sets them, and the recording would fail.
        stand_ins = tuple(nn.Parameter(parameter.detach()) for parameter in trained)
        with warnings.catch_warnings():
            # It warms up on one stream and records on another, and warns of that itself.
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
            recorded = torch.cuda.make_graphed_callables(
                run.as_function, (*(x.clone() for x in inputs), *stand_ins), allow_unused_input=True
            )
        if self._accumulates:
            for parameter in trained:
                parameter.register_hook(torch.clone)  # type: ignore[no-untyped-call]
        return lambda *inputs: cast(Tensor, recorded(*inputs, *trained))

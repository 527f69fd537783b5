"""`quantize_rows`' kernel beside torch. Usage: [TRITON_INTERPRET=1] python -m tests.gpu.quantize_twin DEVICE"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from teacher_cache.targets import quantize_triton
from teacher_cache.targets.quantize import LARGEST_CODE, ROOM, Precision, quantize
from teacher_cache.targets.randomness import rounding_keys, rounding_uniforms

PRECISIONS: tuple[Precision, ...] = ("int8", "int4")


def cases() -> Iterator[Tensor]:
    """States (B, T, d): odd widths, every size that float16 scales have to bear, strided, broken."""
    random = torch.Generator().manual_seed(0)
    for shape in ((3, 7, 64), (2, 5, 100), (1, 9, 3), (2, 3, 257)):
        states = torch.randn(shape, generator=random)
        yield states
        yield states * 10.0 ** torch.arange(-9, 10, 18 / (shape[1] - 1))[: shape[1], None]
        yield torch.randn(shape[0], 2 * shape[1], shape[2], generator=random)[:, ::2]
    yield torch.tensor([0.0, -0.0, torch.inf, 1.0, torch.nan, 1.0, -torch.inf, 1e-40])[None, :, None].expand(2, -1, 70)


def compare(device: str) -> None:
    """Codes and scales are equal to the bit, whatever is masked."""
    random = torch.Generator().manual_seed(1)
    for states in cases():
        counted = torch.rand(states.shape[:2], generator=random) < 0.8
        keys = rounding_keys(5, range(3, 3 + len(states)), torch.device("cpu"))
        for precision in PRECISIONS:
            uniform = rounding_uniforms(keys, states[0].numel()).view(states.shape)
            expected = quantize(torch.where(counted[..., None], states, 0.0), precision, uniform)
            largest = LARGEST_CODE[precision]
            there = (tensor.to(device) for tensor in (states, counted, keys))
            codes, scales = quantize_triton.quantize_rows(*there, largest, ROOM / largest)
            assert torch.equal(codes.cpu(), expected[0])
            assert torch.equal(scales.cpu().nan_to_num(-1.0), expected[1].nan_to_num(-1.0))


if __name__ == "__main__":
    compare(sys.argv[1])
    print("equal")

"""`LayerSum`'s kernel beside plain sums. Usage: [TRITON_INTERPRET=1] python -m tests.gpu.layer_sum_twin DEVICE"""

import sys

import torch

from teacher_cache.teacher.layer_sum_triton import add_in_turn


def compare(device: str) -> None:
    """One to four states of odd sizes, in both dtypes, to the bit."""
    random = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        for count in (1, 2, 3, 4):
            states = [torch.randn(3, 1001, generator=random).to(device, dtype) for _ in range(count)]
            found = torch.randn(3, 1001, generator=random).to(device)
            expected = found.clone()
            add_in_turn(found, states)
            for state in states:
                expected += state
            assert torch.equal(found, expected)


if __name__ == "__main__":
    compare(sys.argv[1])
    print("equal")

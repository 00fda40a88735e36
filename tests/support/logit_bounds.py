"""Compare logits within float32's rounding: the bound follows from their size, not from what one processor gave."""

import torch

ROUNDINGS = 128
"""Units in the last place of the largest logit. Two ways of computing a tiny model (3 layers of width 32) were seen 28
apart with AVX-512 and with AVX2, and 44 on an AVX2 processor of another maker; a wrong mask, position or weight
takes them thousands apart."""


def assert_close(got: torch.Tensor, expected: torch.Tensor, *, rounded: torch.dtype = torch.float32) -> None:
    """Assert that two tensors of logits differ only by the order of the same sums."""
    bound = ROUNDINGS * torch.finfo(rounded).eps * float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=0, atol=bound)

"""The rows of flex_attention's blocks, against what torch and triton were seen to make of them."""

import itertools

import pytest

from zoo.kernels.blocks import SHARED, options, too_large

TORCHS_OWN = {
    ((8, 0), "float32"): {32: 56, 64: 80, 96: 176, 128: 144, 256: 132, 512: 194},
    ((8, 0), "bfloat16"): {64: 26, 80: 56, 128: 64, 192: 82, 256: 112},
    ((9, 0), "float32"): {64: 80, 80: 176, 128: 152},
    ((9, 0), "bfloat16"): {64: 49, 80: 97, 128: 112, 192: 97, 256: 128},
    ((7, 5), "float16"): {64: 32, 128: 64, 256: 128, 512: 192},
    ((12, 0), "float16"): {64: 26, 128: 56, 256: 112, 512: 100},
}
"""KiB of shared memory that training takes by torch's own blocks, by width of heads: compiled for that GPU by torch
2.13 and triton 3.7 as tests/oracle/triton_flex.py does it, 25 November 2026."""

ALIKE = {(8, 0): ((8, 0), (8, 6), (8, 7), (8, 9)), (12, 0): ((12, 0), (12, 1))}
"""GPUs for which torch chooses the same."""

SEEN = [
    pytest.param(capability, dtype, width, taken, id=f"{capability} {dtype} {width}")
    for (first, dtype), sizes in TORCHS_OWN.items()
    for capability in ALIKE.get(first, (first,))
    for width, taken in sizes.items()
]


def chosen(dtype, widths, capability, *, group=1, one=False, grad=True):
    return options(dtype, widths, group, one, grad, capability)


@pytest.mark.parametrize(("capability", "dtype", "width", "taken"), SEEN)
def test_torchs_own_blocks_are_left_only_where_they_were_seen_to_fit(capability, dtype, width, taken):
    given = chosen(dtype, (width, width), capability)
    if "num_stages" not in given:
        assert taken <= SHARED[capability]
    elif dtype != "float32":  # whose blocks torch makes small, but for some widths
        assert taken > SHARED[capability] / 2


@pytest.mark.parametrize("capability", SHARED)
def test_blocks_fit_and_are_the_largest_that_do(capability):
    room = SHARED[capability] * 1024
    for dtype, width, grad in itertools.product(("float32", "bfloat16"), (16, 80, 128, 256, 512, 1024), (False, True)):
        if too_large(dtype, (width, 16), grad, capability):
            continue
        row = (128 if width == 80 else width) * (4 if dtype == "float32" else 2)
        given = chosen(dtype, (width, 16), capability, grad=grad)
        blocks = {2: given.get("fwd_BLOCK_M"), 4: given.get("bwd_BLOCK_M1")}
        assert (blocks[4] is None) == (not grad or blocks[2] is None)
        for held, rows in blocks.items():
            if rows is not None:
                largest = 32 if dtype == "float32" else 64
                assert rows in (16, 32, 64) and held * rows * row < room
                assert rows == largest or 2 * held * rows * row + 16 * 1024 > room


def test_one_query_of_one_row_has_torchs_kernel_that_splits_keys_unless_its_group_is_too_large_for_it():
    assert chosen("bfloat16", (128, 128), (9, 0), one=True, grad=False) == {}
    assert chosen("bfloat16", (128, 128), (9, 0), one=False, grad=False) == {"BACKEND": "TRITON"}
    latents = chosen("bfloat16", (576, 512), (9, 0), group=128, one=True, grad=False)
    assert latents == {"BACKEND": "TRITON", "num_stages": 1, "fwd_BLOCK_M": 32, "fwd_BLOCK_N": 32}


def test_a_gpu_that_is_not_known_is_taken_for_a_small_one():
    for capability in ((13, 0), None):
        forward = {"BACKEND": "TRITON", "num_stages": 1, "fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64}
        backward = dict.fromkeys(("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2"), 32)
        assert chosen("bfloat16", (256, 256), capability) == forward | backward  # those that 99 KiB hold
        assert "99 KiB" in str(too_large("float32", (576, 512), False, capability))

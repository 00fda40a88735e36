"""Define the dtypes of shadows, and torch's type promotion."""

from __future__ import annotations


class ShadowDtype:
    """A torch dtype. `rank` is 0 for bool, 1 for integers and 2 for floats; promotion takes the highest rank."""

    def __init__(self, name: str, itemsize: int, rank: int) -> None:
        self.name, self.itemsize, self.rank = name, itemsize, rank

    def __str__(self) -> str:
        return f"torch.{self.name}"

    @property
    def is_floating_point(self) -> bool:
        return self.rank == 2


BOOL, INT32, INT64 = ShadowDtype("bool", 1, 0), ShadowDtype("int32", 4, 1), ShadowDtype("int64", 8, 1)
FLOAT8 = ShadowDtype("float8_e4m3fn", 1, 2)
BFLOAT16, FLOAT16, FLOAT32 = ShadowDtype("bfloat16", 2, 2), ShadowDtype("float16", 2, 2), ShadowDtype("float32", 4, 2)


def promote(*dtypes: ShadowDtype) -> ShadowDtype:
    """Promote dtypes to the widest of the highest rank; float16 with bfloat16 gives float32."""
    rank = max(dtype.rank for dtype in dtypes)
    top = [dtype for dtype in dtypes if dtype.rank == rank]
    widest = max(top, key=lambda dtype: dtype.itemsize)
    return FLOAT32 if {BFLOAT16, FLOAT16} <= set(top) and widest.itemsize == 2 else widest

"""Where the norms stand around attention and feed-forward, and how both join the residual stream."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator

from zoo.model.attention.base import Attention
from zoo.model.ffn import FFN
from zoo.model.norm import WholeNorm
from zoo.spec import Spec


def _reads_memory(cross: Attention | None) -> Attention | None:
    """Raises ValueError for an attention that cannot read an encoder's output."""
    if cross is not None and not cross.takes_memory:
        raise ValueError(
            f"cross is softmax attention without positions, found '{cross.kind}' (gqa, with position: none)"
        )
    if cross is not None:
        cross.check_cross()
    return cross


class Block(Spec, axis="block"):
    """One layer: x [B, T, D] → x [B, T, D].

    `cross` is attention to an encoder's output, after that to the tokens themselves. What a sub-layer gives is
    multiplied by `residual_scale` before it joins the stream (Granite).
    """

    normalises_output: ClassVar[bool] = (
        False  # whether a norm stands last on the stream, so that no final one is needed
    )
    takes_cross: ClassVar[bool] = False

    attention: Attention
    norm: WholeNorm
    cross: Annotated[Attention | None, AfterValidator(_reads_memory)] = None
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.cross is not None and not self.takes_cross:
            raise ValueError(f"a '{self.kind}' block has no place for cross-attention (pre and post do)")
        scheme = None if self.cross is None else self.cross.positioning
        if self.cross is not None and (scheme is None or scheme.kind != "none"):
            found = "nothing" if scheme is None else f"position '{scheme.kind}'"
            raise ValueError(f"cross is softmax attention without positions, found {found} (gqa, with position: none)")

    def state(self) -> dict[str, tuple[int, ...]]:
        """Of its attention, and of a feed-forward that counts tokens."""
        ffn: FFN | None = getattr(self, "ffn", None)
        return self.attention.state() | (ffn.state() if ffn else {})

    def add(self, x: Any, y: Any) -> Any:
        """The stream with what a sub-layer gave."""
        return x + y if self.residual_scale == 1.0 else x + y * self.residual_scale

"""Every field of every choice in conf/ bites: another value of it is refused in one line, or it changes the logits, the
losses, the initial values or the price. What it changes must also run."""

from __future__ import annotations

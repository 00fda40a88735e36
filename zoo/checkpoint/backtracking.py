"""Detect regular expressions in a tokenizer.json that may backtrack for very long, from their syntax alone.

Backtracking is slow if a repetition repeats a part of variable length, `(a+)+`, or if several repetitions precede a
part that may fail to match, `a*a*b` (Weideman et al., 2016, "Analyzing matching time behavior of backtracking regular
expression matchers"). Oniguruma, which the package tokenizers uses, gives up after 10⁷ steps at one position, but a
text has many positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zoo.errors import ConfigError

SEVERAL, CHOICES = 1, 8
"""Maximum unbounded repetitions and choices before a part that must match. Published patterns have 1 and 3."""
LONG = 64
"""A repetition of more than this many times counts as unbounded."""
DEEPEST, LONGEST = 20, 10_000

KNOWN = (r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+", r"(?:\p{L}\p{M}*)+", r"(?:\r?\n)+")
"""Published patterns (EXAONE 4's, say) that repeat a part of variable length, but match a text in only one way."""


@dataclass(frozen=True)
class Item:
    """A character or group of a pattern, repeated `least` to `most` times (None: unbounded). A group has `branches`,
    its alternatives, each a sequence of items; a lookahead or lookbehind (`looks`) consumes no text."""

    least: int = 1
    most: int | None = 1
    branches: tuple[tuple[Item, ...], ...] = ()
    looks: bool = False

    @property
    def varies(self) -> bool:
        """Whether the item may match in more than one way: by its own repetition, or by a choice inside it."""
        inside = len(self.branches) > 1 or any(each.varies for branch in self.branches for each in branch)
        return self.least != self.most or inside

    @property
    def is_needed(self) -> bool:
        """Whether a match fails if the item is absent from the text."""
        if not self.branches or self.looks:
            return self.least > 0
        return self.least > 0 and all(any(each.is_needed for each in branch) for branch in self.branches)


def find_slow_part(pattern: str) -> str | None:
    """Describe in a few words why a pattern may be slow, or why it cannot be parsed; None for a fast pattern."""
    for each in KNOWN:
        pattern = pattern.replace(each, r"\p{L}+")
    if len(pattern) > LONGEST:
        return f"it has {len(pattern):,} characters (at most {LONGEST:,})"
    try:
        branches = _Parser(pattern).parse_whole()
        _count(Item(branches=branches), needed=False)
    except ConfigError as error:
        return str(error)
    return None


def _count(item: Item, needed: bool) -> tuple[int, int]:
    """Count an item's unbounded repetitions and its choices before a part that must match. `needed` says that such a
    part follows the item. Raises ConfigError for more than SEVERAL repetitions or CHOICES choices, and for a repeated
    part of variable length."""
    repeated = item.most is None or item.most > 1
    inside = [each for branch in item.branches for each in branch]
    if repeated and (len(item.branches) > 1 or any(each.varies for each in inside)):
        raise ConfigError("it repeats a part that is itself of several lengths")
    most = (0, 0)
    for branch in item.branches:
        endless, choices, after = 0, 0, needed and not item.looks
        for each in reversed(branch):
            inner = _count(each, after)
            endless, choices = endless + inner[0], choices + inner[1]
            after = after or each.is_needed
        most = (max(most[0], endless), max(most[1], choices))
    is_endless = item.most is None or item.most > LONG
    endless, choices = most[0] + (needed and is_endless), most[1] + (needed and item.least != item.most)
    if endless > SEVERAL:
        raise ConfigError("several repetitions without an end stand before a part that may be missing")
    if choices > CHOICES:
        raise ConfigError(f"more than {CHOICES} choices stand before a part that may be missing")
    return endless, choices


@dataclass
class _Parser:
    """Parses a pattern's structure: groups, alternatives and repetitions. Anything else counts as one character."""

    text: str
    at: int = 0
    depth: int = 0

    def parse_whole(self) -> tuple[tuple[Item, ...], ...]:
        branches = self.parse_branches()
        if self.at < len(self.text):
            raise ConfigError("it has a bracket that closes none")
        return branches

    def parse_branches(self) -> tuple[tuple[Item, ...], ...]:
        branches, branch = [], []
        while self.at < len(self.text) and self.text[self.at] != ")":
            if self.take("|"):
                branches.append(tuple(branch))
                branch = []
            else:
                branch += self.parse_item()
        return (*branches, tuple(branch))

    def parse_item(self) -> Iterator[Item]:
        item = self.parse_atom()
        while (found := self.parse_times()) is not None:
            if item.least != 1 or item.most != 1:  # (…)+*
                item = Item(branches=((item,),))
            item = Item(*found, item.branches, item.looks)
        yield item

    def parse_times(self) -> tuple[int, int | None] | None:
        """Read `*`, `+`, `?` or `{n,m}`, and a sign after it (lazy or possessive). Returns (least, most), or None."""
        least, most = 1, 1
        if self.take("*"):
            least, most = 0, None
        elif self.take("+"):
            most = None
        elif self.take("?"):
            least = 0
        elif self.text[self.at : self.at + 1] == "{":
            end = self.text.find("}", self.at)
            first, comma, last = self.text[self.at + 1 : max(end, 0)].partition(",")
            if end < 0 or not (first + last).isdecimal() or len(first + last) > 10:
                return None  # a literal brace
            least = int(first or 0)
            most = (int(last) if last else None) if comma else least
            self.at = end + 1
            self.take("?")
            return least, most  # {n,m}+ is a repetition of a repetition; only after `*`, `+`, `?` is + possessive
        else:
            return None
        _ = self.take("?") or self.take("+")
        return least, most

    def parse_atom(self) -> Item:
        if self.take("("):
            return self.parse_group()
        if self.take("["):
            self.skip_class()
        elif self.take("\\"):
            self.skip_escape()
        else:
            self.at += 1
        return Item()

    def parse_group(self) -> Item:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ConfigError(f"it is nested more than {DEEPEST} deep")
        looks = False
        if self.take("?"):
            start = self.at
            while self.at < len(self.text) and self.text[self.at] not in ":=!>)#'~(|":
                self.at += 1
            head, sign = self.text[start : self.at], self.text[self.at : self.at + 1]
            if sign in ("#", "~", "'", "(", "|", "") or "x" in head.partition("<")[0]:
                raise ConfigError(f"it has a group (?{head}{sign}, which is not known here")
            looks = sign in ("=", "!")
            self.at += sign != ")"
        branches = self.parse_branches()
        if not self.take(")"):
            raise ConfigError("it has a bracket that is not closed")
        self.depth -= 1
        return Item(branches=branches, looks=looks)

    def skip_class(self) -> None:
        """Skip the rest of `[…]`, which may contain nested brackets. Raises ConfigError if it is not closed."""
        depth, first = 1, True
        while depth:
            if self.at >= len(self.text):
                raise ConfigError("it has a bracket that is not closed")
            sign = self.text[self.at]
            self.at += 2 if sign == "\\" else 1
            if sign == "[":
                depth += 1
            elif sign == "]" and not first:
                depth -= 1
            first = first and sign == "^"

    def skip_escape(self) -> None:
        """Skip an escape sequence. Raises ConfigError for a reference to another part of the pattern."""
        sign = self.text[self.at : self.at + 1]
        if sign in "123456789gk":
            raise ConfigError(f"it refers to another part of itself, \\{sign}")
        self.at += 1
        if sign in "pPxouU" and self.take("{"):
            self.at = max(self.text.find("}", self.at) + 1, self.at)

    def take(self, sign: str) -> bool:
        found = self.text.startswith(sign, self.at)
        self.at += found
        return found

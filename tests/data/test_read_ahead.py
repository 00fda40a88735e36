"""Batches that a thread makes ahead are those that are asked for, whatever is asked for."""

import threading
from itertools import islice

import numpy as np
import pytest
import torch

from zoo.data.read_ahead import ReadAhead
from zoo.data.tokens import Batches, TokenFile


def open_batches(ahead, seed=0):
    ids = np.random.default_rng(5).integers(1, 50, 4001).astype(np.uint16)
    found = Batches(TokenFile(ids=ids, eos_id=0, n_documents=1, n_bytes=4000), 4, 16, seed=seed)
    if ahead:
        found.ahead = ReadAhead(found.read, pins=False)
    return found


def equal(one, other):
    return all(torch.equal(a, b) if a is not None else b is None for a, b in zip(one, other, strict=True))


def test_they_are_the_batches_of_one_thread_over_several_epochs():
    one, other = open_batches(True), open_batches(False)
    for a, b in islice(
        zip(one, other, strict=False), 400
    ):  # 250 rows an epoch, 1,600 rows: more than one block of places
        assert equal(a, b)
        assert one.consumed == other.consumed
        assert one.place(one.consumed - 1) == other.place(other.consumed - 1)


def test_going_back_and_another_share_drop_what_was_read_ahead():
    one, other = open_batches(True), open_batches(False)
    for consumed, share in ((0, (0, 1)), (40, (0, 1)), (8, (1, 2)), (12, (0, 2))):
        one.consumed = other.consumed = consumed
        one.share = other.share = share
        assert equal(next(one), next(other))


def test_the_next_batch_is_being_made_while_the_present_one_is_used():
    asked, made = [], threading.Event()

    def read(first, count):
        asked.append((first, threading.current_thread() is threading.main_thread()))
        if first:
            made.set()
        return ()

    ReadAhead(read, pins=False).take(0, 4, 8)
    assert made.wait(10)
    assert asked == [(0, True), (8, False)]


def test_what_reading_raises_comes_with_the_batch_that_it_is_of():
    def read(first, count):
        if first == 8:
            raise ValueError("row 8")
        return ()

    ahead = ReadAhead(read, pins=False)
    ahead.take(0, 4, 8)
    with pytest.raises(ValueError, match="row 8"):
        ahead.take(8, 4, 8)

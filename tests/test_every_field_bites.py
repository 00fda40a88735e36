"""Every field of every choice in conf/ bites: another value of it is refused in one line, or it changes the logits, the
losses, the initial values or the price. What it changes must also run."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
import typing
import zlib

import annotated_types
import pytest
import torch
from omegaconf import OmegaConf
from tiny import _readable, choices, needs

from zoo import grammar
from zoo.compose import load_composed
from zoo.costs import price
from zoo.errors import ConfigError
from zoo.grammar import AXES
from zoo.run.builder import build
from zoo.spec import Spec

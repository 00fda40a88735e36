"""Scaling laws: the loss as a function of parameters and tokens, fitted to trained models."""

from zoo.analysis.scaling.fitting import FittedLaw, fit_law
from zoo.analysis.scaling.isoflop import IsoFlop, fit_isoflop, measure_bias
from zoo.analysis.scaling.law import Law, Optimum
from zoo.analysis.scaling.points import LossPoints

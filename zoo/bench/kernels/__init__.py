"""Measure every kernel's errors and speed on the present device (`zoo bench kernels`, or `make gpu-check`)."""

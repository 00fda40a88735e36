"""`zoo bench kernels`, or `make gpu-check`: what each kernel gets wrong and how fast it is, on the device at hand."""

"""One layer: where the norms stand around attention and feed-forward. The base; those of sub-layers on one stream; a
file for each other."""

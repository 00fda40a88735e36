"""Blocks: a layer's sub-layers, their norms and how each joins the residual stream. `base` has the base class,
`sublayers` the blocks of one stream; each other block has a file."""

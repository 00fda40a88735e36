"""The processes (ranks) of a distributed run: meshes, collectives, sharded tensors and pipeline schedules."""

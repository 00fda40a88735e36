"""Read GGUF files (llama.cpp's): tensors under Hugging Face names, the tokenizer, and a Hugging Face folder of both."""

from zoo.checkpoint.gguf.tensors import lay_keys as lay_keys
from zoo.checkpoint.gguf.tensors import list_tensors as list_tensors
from zoo.checkpoint.gguf.unpacking import find as find
from zoo.checkpoint.gguf.unpacking import is_unpacked as is_unpacked
from zoo.checkpoint.gguf.unpacking import read_unpacked as read_unpacked

"""Open, read and write Hugging Face folders: convert config.json and tensors to a model of Zoo, and back."""

from zoo.checkpoint.hf.opening import HFSource as HFSource
from zoo.checkpoint.hf.opening import compose_spec as compose_spec
from zoo.checkpoint.hf.opening import describe_unread as describe_unread
from zoo.checkpoint.hf.opening import find_differences as find_differences
from zoo.checkpoint.hf.opening import open_folder as open_folder
from zoo.checkpoint.hf.opening import read_end_ids as read_end_ids
from zoo.checkpoint.hf.reading import open_model as open_model
from zoo.checkpoint.hf.writing import SHARD as SHARD
from zoo.checkpoint.hf.writing import save as save

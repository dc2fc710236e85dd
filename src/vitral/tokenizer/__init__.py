"""Text <-> ids: vocabularies of Llama, Mistral and Mixtral checkpoints, streams of text, chat templates."""

from vitral.tokenizer.load import from_gguf, from_path, load_tokenizer
from vitral.tokenizer.stream import TextStream
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["TextStream", "Tokenizer", "from_gguf", "from_path", "load_tokenizer"]

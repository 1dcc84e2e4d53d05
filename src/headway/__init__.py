"""Change the model, the prompt or the search index behind an LLM application without losing ground."""

from importlib.metadata import version as _version

__version__ = _version("headway")

"""A server of language models: many conversations at a time, over OpenAI's API."""
from __future__ import annotations

"""Language models from files: load one, complete texts, hold conversations.

To read the folder, in this order (each file before those that it stands on):

    answers      generate.py: writing.py, sampling.py (the next token), speculate.py
    models       model.py (layers, one row per architecture): weights.py and layout.py (quantised
                 matrices), pages.py (keys and values, and attention over them); memory.py
    files        opening.py: sources.py (GGUF), hugging_face.py (folders), hub.py and fetch.py
    text         tokenizer.py: vocabulary.py, tokenizer_gguf.py and pretokenizers.py,
                 tokenizer_json.py, stream.py; template.py and sandbox.py (conversations)
    JSON only    constrain.py: schema.py, keywords.py, regular.py, json_text.py, expressions.py
    training     finetune.py: dataset.py, training.py, adapters.py (LoRA), merge.py
    embeddings   embeddings.py: encoder.py
    commands     chat.py, embed.py, finetune_command.py, perplexity.py, bench.py: options.py,
                 extras.py (packages that are not there), checks.py
    a server     serve/command.py: app.py (HTTP), service.py, api.py and answers.py (OpenAI's API),
                 engine.py and sharing.py (many conversations in one step), tools.py, metrics.py,
                 guard.py (who is not answered); load.py tests one under load
"""
from __future__ import annotations

from muladd.llm.generate import LanguageModel, load
from muladd.llm.sampling import Sampling
from muladd.llm.tokenizer import Tokenizer
from muladd.llm.writing import Piece

__all__ = ["LanguageModel", "Piece", "Sampling", "Tokenizer", "load"]

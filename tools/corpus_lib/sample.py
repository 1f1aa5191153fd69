"""The text that a tokenizer is trained on: training documents only, every domain with its share."""

import json

from .sources import DOMAINS, TOKENIZER_SAMPLE_MEGABYTES

_LONGEST_LINE = 1200  # characters; SentencePiece silently drops lines of more bytes than its limit


def spread(documents, total_bytes, wanted_bytes):
    """Documents at even distances over all of them, about wanted_bytes together."""
    taken = passed = 0
    for document in documents:
        size = len(document.encode())
        passed += size
        if taken * total_bytes < wanted_bytes * passed:
            taken += size
            yield document


def sample_lines(document):
    """The document's lines, cut so that none is too long; empty ones left out."""
    for line in document.split("\n"):
        for start in range(0, len(line), _LONGEST_LINE):
            piece = line[start : start + _LONGEST_LINE]
            if piece.strip():
                yield piece


def write_tokenizer_sample(file, corpus):
    for domain in DOMAINS:
        with open(corpus / domain / "train.jsonl", encoding="utf-8") as lines:
            documents = [json.loads(line)["text"] for line in lines]
        total = sum(len(document.encode()) for document in documents)
        for document in spread(documents, total, min(total, TOKENIZER_SAMPLE_MEGABYTES[domain] * 1e6)):
            file.writelines(line + "\n" for line in sample_lines(document))

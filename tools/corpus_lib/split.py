"""Which document goes where: one split for all translations of a page, and no text twice."""

import hashlib
import re

SPLITS = ("train", "valid", "test")

# A language's name where paths have one: /ja/, page.ja.html, doc_zh-CN.html.
_LANGUAGE = re.compile(
    r"(?<![^/._-])(?:ja[_-]JP|ja|zh[_-](?:CN|cn|hans)|zh|ko[_-]KR|ko|en[_-](?:US|us)|en|C)(?:\.UTF-8)?[/._]"
)
# The least length, in characters, of a line that may occur only once, and of a document after its repeats are gone.
_LEAST_LINE = {"en": 40, "ja": 20, "zh": 20, "ko": 20}
_LEAST_DOCUMENT = {"en": 200, "code": 200, "ja": 80, "zh": 80, "ko": 80}


def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def page_key(path):
    """The path without its language, so that a page's translations have the same key."""
    return _LANGUAGE.sub("", path)


def split_of(key):
    """train, valid (3%) or test (3%), by the key alone."""
    share = int.from_bytes(digest(key), "big") % 100
    return "valid" if share < 3 else "test" if share < 6 else "train"


class Deduplicator:
    """Drops documents and long lines that came before in the same domain."""

    def __init__(self, domain):
        self._domain = domain
        self._documents = set()
        self._lines = set()

    def keep(self, text):
        """What is left of the text; empty if it is a repeat, or too short without its repeated lines."""
        key = digest(re.sub(r"\s+", " ", text))
        if key in self._documents:
            return ""
        self._documents.add(key)
        if self._domain in _LEAST_LINE:  # code repeats lines for good reasons
            text = "\n".join(line for line in text.split("\n") if self._is_new(line)).strip()
        return text if len(text) >= _LEAST_DOCUMENT[self._domain] else ""

    def _is_new(self, line):
        if len(line) < _LEAST_LINE[self._domain]:
            return True
        key = digest(line.strip())
        if key in self._lines:
            return False
        self._lines.add(key)
        return True

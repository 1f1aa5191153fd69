"""Readers: each takes one File and yields Documents; its options come from the source's line in sources.py."""

import gzip
import io
import re
import struct
import subprocess
import zipfile
import zlib
from dataclasses import dataclass

from .split import split_of
from .text import html_to_text, join_unspaced_lines, xml_to_text

_MESSAGES_PER_DOCUMENT = 40
_PARAGRAPHS_PER_DOCUMENT = 30


@dataclass
class Document:
    part: str  # which part of the file; empty where the file is one document
    text: str
    split: str = ""  # where it must go; empty where the path decides


class File:
    """A file of a package, in memory; `beside` has the further files that its source asks for, by path."""

    def __init__(self, path, data, beside=None):
        self.path = path
        self.data = gzip.decompress(data) if path.endswith((".gz", ".dz")) else data
        self._beside = beside or {}

    def text(self, encoding="utf-8"):
        return self.data.decode(encoding, "replace").replace("\r\n", "\n")

    def beside(self, path):
        return File(path, self._beside[path]).data


def html_page(file, inside=None):
    declared = re.search(rb"<meta[^>]*charset=[\"']?([A-Za-z0-9_-]+)", file.data[:2000], re.I)
    yield Document("", html_to_text(file.text(declared.group(1).decode() if declared else "utf-8"), inside))


def xml_page(file):
    yield Document("", xml_to_text(file.text()))


def man_page(file):
    """A page in roff, rendered by mandoc, which the caller puts into PATH."""
    command = ["mandoc", "-Kutf-8", "-Thtml", "-Ofragment"]
    result = subprocess.run(command, input=file.data, capture_output=True, check=False)
    yield Document("", html_to_text(result.stdout.decode("utf-8", "replace")))


def page_archive(file):
    """The HTML pages of a .zip or .jar."""
    with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".html") and not re.search(r"(^|/)(index|section_|jhelp)", name):
                yield Document(name, html_to_text(archive.read(name).decode("utf-8", "replace")))


def lyx_document(file):
    """The paragraphs of a LyX file, without its commands and the settings of its insets."""
    body = file.text().partition("\\begin_body")[2]
    setting = re.compile(r"\\|[A-Za-z_]+ \S+$|\w+ \"|<|\t|\w+ (true|false|none|open|collapsed)$")
    paragraphs = re.split(r"\\(?:begin|end)_layout.*\n", body)
    lines = ("".join(line for line in p.split("\n") if not setting.match(line)) for p in paragraphs)
    yield Document("", "\n".join(line.strip() for line in lines if line.strip()))


def plain_text(file, separator=None):
    """The file, or its parts between the matches of `separator`."""
    text = file.text()
    if separator is None:
        yield Document("", text)
        return
    for number, part in enumerate(re.split(separator, text)):
        yield Document(str(number), part.strip())


def code_file(file):
    data = file.data
    if not 200 <= len(data) <= 200_000:
        return
    try:
        yield Document("", data.decode("utf-8"))
    except UnicodeDecodeError:  # test data in other encodings isn't worth guessing
        return


def _catalogue_messages(data):
    """(original, translation) pairs of a GNU .mo file."""
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, translations = struct.unpack_from(order + "3I", data, 8)

    def string(table, index):
        length, offset = struct.unpack_from(order + "2I", data, table + 8 * index)
        return data[offset : offset + length].split(b"\0")[0].decode("utf-8", "replace")  # the singular form

    for index in range(count):
        original = string(originals, index).rsplit("\x04", 1)[-1]  # without the context
        if original:
            yield original, string(translations, index)


def catalogue(file, original=False, markup=None, least_length=0):
    """A .mo file in documents of consecutive messages: the translations, or the originals they translate.

    The original decides the split of a message, so that no language shows what another holds back.
    """
    documents = {}
    for source, translation in _catalogue_messages(file.data):
        if source == translation:
            continue
        text = source if original else translation
        text = re.sub(markup, "", text).strip() if markup else text.strip()
        if len(text) >= least_length:
            documents.setdefault(split_of(source), []).append(text)
    for split, messages in documents.items():
        for start in range(0, len(messages), _MESSAGES_PER_DOCUMENT):
            part = f"{split}-{start // _MESSAGES_PER_DOCUMENT}"
            yield Document(part, "\n".join(messages[start : start + _MESSAGES_PER_DOCUMENT]), split)


def package_descriptions(file, language):
    """A Translation index of apt: one document per package."""
    pattern = re.compile(rf"^Package: (\S+)\n(?:.*\n)*?Description-{language}: (.*(?:\n .*)*)", re.M)
    for entry in file.text().split("\n\n"):
        found = pattern.search(entry)
        if found:
            yield Document(found.group(1), _description_text(found.group(2)))


def _description_text(field):
    """The title and paragraphs of a description: wrapped lines joined, list items and examples as they are."""
    title, *rest = field.split("\n")
    lines = [title.strip()]
    wrapping = False
    for line in rest:
        if line.strip() == ".":
            wrapping = False
        elif line.startswith(("  ", " *", " -")):
            lines.append(line.strip())
            wrapping = False
        elif wrapping:
            lines[-1] = join_unspaced_lines(lines[-1] + "\n" + line.strip()).replace("\n", " ")
        else:
            lines.append(line.strip())
            wrapping = True
    return "\n".join(lines)


def dictionary(file):
    """A dictd .index file and the .dict.dz beside it: one document per entry."""
    digits = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}

    def number(text):
        value = 0
        for character in text:
            value = value * 64 + digits[character]
        return value

    data = file.beside(file.path.removesuffix(".index") + ".dict.dz")
    seen = set()
    for line in file.text().split("\n"):
        fields = line.split("\t")
        if len(fields) < 3 or fields[0].startswith("00") or (fields[1], fields[2]) in seen:
            continue
        seen.add((fields[1], fields[2]))
        start = number(fields[1])
        yield Document(fields[0], data[start : start + number(fields[2])].decode("utf-8", "replace").strip())


def sword_text(file):
    """A compressed SWORD module (.bzz; its index .bzs has offset and size of each zlib block)."""
    index = file.beside(file.path[:-1] + "s")
    for block, (offset, size, _) in enumerate(struct.iter_unpack("<III", index)):
        if size == 0:
            continue
        text = zlib.decompress(file.data[offset : offset + size]).decode("utf-8", "replace")
        text = html_to_text(re.sub(r"<(note|title)\b.*?</\1>|\0", "", text, flags=re.S), chrome=False)
        text = re.sub(r"\s+", " ", text)
        for number, passage in enumerate(re.findall(r".{1,3000}(?:\. |$)", text)):
            yield Document(f"{block}.{number}", passage)


def r_books(file):
    """Character vectors of an R lazy-load database: lines of books, blank lines between paragraphs."""
    data = file.data
    position = book = 0
    while position + 4 < len(data):
        stream = zlib.decompressobj()  # a record: its size inflated (4 bytes), then zlib data
        record = stream.decompress(data[position + 4 :])
        position = len(data) - len(stream.unused_data)
        lines = list(_r_strings(record))
        paragraphs = [" ".join(block.split()) for block in re.split(r"\n\s*\n", "\n".join(lines))]
        for start in range(0, len(paragraphs), _PARAGRAPHS_PER_DOCUMENT):
            text = "\n".join(p for p in paragraphs[start : start + _PARAGRAPHS_PER_DOCUMENT] if p)
            yield Document(f"{book}.{start // _PARAGRAPHS_PER_DOCUMENT}", text)
        book += 1


def _r_strings(record):
    """The strings of a serialised R object: type 9 with its flags, a big-endian length, the bytes."""
    header = re.compile(rb"\x00[\x00\x04]\x00\x09")
    position = 0
    while found := header.search(record, position):
        (length,) = struct.unpack_from(">i", record, found.end())
        position = found.end() + 4
        if 0 <= length < 500:
            yield record[position : position + length].decode("latin-1")
            position += length

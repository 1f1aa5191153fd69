"""Plain text out of HTML and XML, and the rules for what is good text in each language."""

import html
import re

# Marks that survive the collapsing of white space: a line break, and a space inside <pre>.
_BREAK = "\x01"
_SPACE = "\x02"

_COMMENT = re.compile(r"<!--.*?-->|<!DOCTYPE[^\[>]*\[.*?\]\s*>|<[!?][^>]*>", re.S)
_RAW = re.compile(r"<(script|style|svg|noscript|template)\b.*?</\1\s*>", re.S | re.I)
# One tag; possessive so that an unbalanced quote can't make the search slow.
_TAG = re.compile(r'<(/?)([A-Za-z][^\s/>]*+)((?:[^>"]++|"[^"]*+")*+)>')
_NAMES = re.compile(r"\b(class|id|role)\s*=\s*[\"']?([^\"'>]*)", re.I)

_VOID = frozenset("area base br col embed hr img input link meta param source track wbr xref".split())
_BLOCK = frozenset(
    """address article aside blockquote body br caption dd details div dl dt figcaption figure h1 h2 h3 h4 h5 h6 head hr
    li main ol p pre section summary table td th title tr ul
    chapter code-block desc entry formalpara info item listitem literallayout note page para programlisting row screen
    sect1 sect2 sect3 simpara steps term terms varlistentry""".split()
)
_PRE = frozenset("pre screen programlisting literallayout".split())
_HIDDEN = re.compile(r"(?:^|\s)hidden(?:=|\s|$)")  # in attributes without their values
_CHROME_TAGS = frozenset("nav header footer button select".split())
# Names that pages give to what isn't their text: navigation, indexes of contents, page headers and footers. Classes
# and roles match in part; ids are often made of a section's title, so they must match whole.
_CHROME_CLASSES = re.compile(
    r"navigation|nav[-_]?(?:bar|header|footer|table|links)|breadcrumb|side-?bar|leftside|rightside|\btoc|toctree|page-toc"
    r"|menu-?bar|lang-?menu|(?:bottom|top)-?lang|headerlink|search-?(?:box|form)|footer|copyright|prev-next"
    r"|related-?topics|src-line|(?:^|\s)(?:head|foot|related|contents topic)(?:\s|$)",
    re.I,
)
_CHROME_IDS = re.compile(
    r"side-?bar|toc|table-of-contents|nav-?bar|menu-?bar|top-?nav|breadcrumbs?|page-(?:header|footer)|TopLeftHeader"
    r"|SearchFrame|DonationFrame|documentation_options|rustdoc-breadcrumbs",
    re.I,
)

# Scripts written without spaces between words: kana, Han, their punctuation and full-width forms. Not Hangul.
_UNSPACED = r"\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
_BREAK_IN_SENTENCE = re.compile(rf"(?<=[{_UNSPACED}])[ \t]*\r?\n[ \t]*(?=[{_UNSPACED}])")


def join_unspaced_lines(text):
    """Deletes line breaks between two Japanese or Chinese characters: there a break isn't a space."""
    return _BREAK_IN_SENTENCE.sub("", text)


def _collapse(marked):
    """Text with marks to plain lines: white space collapses to one space, marks become breaks and spaces."""
    text = re.sub(r"[ \t\r\n\f\v\xa0]+", " ", join_unspaced_lines(marked))
    lines = (line.strip(" ").replace(_SPACE, " ").rstrip() for line in text.split(_BREAK))
    return "\n".join(line for line in lines if line)


def _is_chrome(name, attributes, known):
    """Whether an element is hidden, navigation and the like; `known` remembers the answer for each attribute string."""
    if name in _CHROME_TAGS:
        return True
    if not attributes:
        return False
    if attributes not in known:
        known[attributes] = any(
            _CHROME_IDS.fullmatch(value) if key.lower() == "id" else _CHROME_CLASSES.search(value)
            for key, value in _NAMES.findall(attributes)
        ) or bool(_HIDDEN.search(re.sub(r'"[^"]*"', "", attributes)))
    return known[attributes]


def html_to_text(source, inside=None, chrome=True):
    """The text of an HTML page or XML file, one line per block.

    inside: take only the element with this id. chrome: leave out navigation, menus, headers and footers.
    """
    source = _RAW.sub("", _COMMENT.sub("", source))
    if inside is not None:
        source = _element(source, inside)
    pieces = []
    known = {}
    skipped = None  # the name of the element being left out, and how many of that name are open
    depth = preformatted = position = 0
    for tag in _TAG.finditer(source):
        closing, name, attributes = tag.group(1), tag.group(2).lower(), tag.group(3)
        if skipped is None:
            piece = source[position : tag.start()]
            if preformatted:
                piece = piece.replace("\n", _BREAK).replace(" ", _SPACE).replace("\t", _SPACE * 4)
            pieces.append(piece)
        position = tag.end()
        if skipped is not None:
            if name == skipped and not attributes.endswith("/"):
                depth += -1 if closing else 1
                if depth == 0:
                    skipped = None
            continue
        if name in _BLOCK:
            pieces.append(_BREAK)
        if name in _VOID or attributes.endswith("/"):
            continue
        if chrome and not closing and name not in ("html", "body") and _is_chrome(name, attributes, known):
            skipped, depth = name, 1
        elif name in _PRE:
            preformatted = max(0, preformatted + (-1 if closing else 1))
    if skipped is None:
        pieces.append(source[position:])
    return _collapse(html.unescape("".join(pieces)))


def xml_to_text(source):
    """The text of a Mallard or DocBook file, without the block that names its authors and licence."""
    return html_to_text(re.sub(r"<(info|bookinfo|articleinfo)\b.*?</\1\s*>", "", source, flags=re.S), chrome=False)


def _element(source, identity):
    """The part of the page from the element with this id to its end; empty where there is none."""
    start = re.search(rf'<([A-Za-z][^\s/>]*)[^>]*\bid="{re.escape(identity)}"', source)
    if not start:
        return ""
    depth = 0
    for tag in re.finditer(rf"<(/?){start.group(1)}\b[^>]*>", source[start.start() :]):
        depth += -1 if tag.group(1) else 1
        if depth == 0:
            return source[start.start() : start.start() + tag.end()]
    return source[start.start() :]


# Language: letters that tell it, and the least share of them in a document.
_LETTERS = {
    "ja": (re.compile("[\u3040-\u30ff]"), 0.02),
    "zh": (re.compile("[\u4e00-\u9fff]"), 0.05),
    "ko": (re.compile("[\uac00-\ud7af]"), 0.05),
}
_ANY_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_CODE_LIKE = re.compile(r"[{};=<>|\\]|^\s")


def _is_untranslated(line):
    """Whether a line of a translated page is an English sentence that nobody translated yet."""
    return len(line) >= 40 and line.count(" ") >= 5 and not _ANY_CJK.search(line) and not _CODE_LIKE.search(line)


def clean(text, domain):
    """The text as it goes into the corpus: valid UTF-8, without untranslated lines; empty if it isn't worth keeping."""
    text = text.encode("utf-8", "ignore").decode("utf-8").replace("\0", "")
    if domain not in _LETTERS:
        text = text.strip("\n") if domain == "code" else text.strip()
        return text if len(text) >= 100 else ""
    text = "\n".join(line for line in text.split("\n") if not _is_untranslated(line)).strip()
    letters, least = _LETTERS[domain]
    if len(text) < 50 or len(letters.findall(text)) < least * len(text):
        return ""
    return text

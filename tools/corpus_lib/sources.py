"""The sources of the two corpora: which files of which Debian package, in which language, read how."""

from dataclasses import dataclass, field
from typing import Callable

from . import readers

DOMAINS = ("en", "ja", "code", "zh", "ko")


@dataclass(frozen=True)
class Source:
    name: str
    domain: str
    package: str  # a Debian package, or "apt:NAME" for a file of apt's package index
    files: str  # pattern that the path of a file in the package must match somewhere
    reader: Callable
    skip: str = ""  # pattern of paths to leave out
    beside: str = ""  # pattern of further files that the reader opens
    options: dict = field(default_factory=dict)  # for the reader


def _page(name, domain, package, files=r"\.html$", skip="", **options):
    return Source(name, domain, package, files, readers.html_page, skip, options=options)


def _man(name, domain, package, files=r"/man/ja(\.UTF-8)?/"):
    return Source(name, domain, package, files, readers.man_page)


def _messages(name, domain, package, files=r"/locale/ja(_JP)?/LC_MESSAGES/.*\.mo$|[-/]ja\.mo$", **options):
    return Source(name, domain, package, files, readers.catalogue, options=options)


def _text(name, domain, package, files, separator=None):
    return Source(name, domain, package, files, readers.plain_text, options={"separator": separator})


def _code(name, package, files):
    return Source(name, "code", package, files, readers.code_file)


def _each_language(make, name, package, files, languages, **options):
    """The same source in several languages: {} in package and files stands for the language as the package writes it."""
    return [
        make(f"{name}-{domain}", domain, package.format(language), files.replace("{}", language), **options)
        for domain, language in languages.items()
    ]


def _xml(name, domain, package, files):
    return Source(name, domain, package, files, readers.xml_page)


def _without(languages, *domains):
    return {domain: language for domain, language in languages.items() if domain not in domains}


# How packages write the four languages.
_LOWER = {"en": "en-us", "ja": "ja", "zh": "zh-cn", "ko": "ko"}
_REGION = {"en": "en-US", "ja": "ja-JP", "zh": "zh-CN", "ko": "ko-KR"}
_POSIX = {"en": "en", "ja": "ja", "zh": "zh_CN", "ko": "ko"}
_SHORT = {"en": "en", "ja": "ja", "zh": "zh", "ko": "ko"}
_SPHINX_INDEXES = r"genindex|modindex|/search|_modules/"

QUICK = [
    _man("manpages-ja", "ja", "manpages-ja"),
    *_each_language(_page, "libreoffice-help", "libreoffice-help-{}", r"/text/.*\.html$", _LOWER, inside="DisplayArea"),
    Source("descriptions-ja", "ja", "apt:Translation-ja", "Translation-ja", readers.package_descriptions,
           options={"language": "ja"}),
    Source("austen-en", "en", "r-cran-janeaustenr", r"/Rdata\.rdb$", readers.r_books),
    _man("manpages-en", "en", "manpages", r"/man/man"),
    _man("manpages-dev-en", "en", "manpages-dev", r"/man/man"),
    _code("python-library", "libpython3.11-stdlib", r"\.py$"),
]

_JAPANESE_MANUALS = [
    _man("manpages-dev-ja", "ja", "manpages-ja-dev"),
    *(_man(f"man-{package}-ja", "ja", package)
      for package in "debhelper drbd-utils gfarm-client libguestfs0 lxc passwd po4a".split()),
    _page("lilypond-ja", "ja", "lilypond-doc-html-ja", r"\.ja\.html$", r"big-page|-index\.ja|_toc|_abt"),
    _page("rust-by-example-ja", "ja", "rust-web-doc", r"/rust-by-example/ja/.*\.html$", r"print\.html|toc\.html"),
    _page("fontforge-ja", "ja", "fontforge-doc", r"/ja/.*\.html$"),
    _page("aptitude-ja", "ja", "aptitude-doc-ja"),
    _page("developers-reference-ja", "ja", "developers-reference-ja", skip=_SPHINX_INDEXES),
    _page("debian-reference-ja", "ja", "debian-reference-ja"),
    _page("maint-guide-ja", "ja", "maint-guide-ja"),
    _page("live-manual-ja", "ja", "live-manual-html", r"html/live-manual/.*\.ja\.html$"),
    _page("debian-faq-ja", "ja", "debian-faq-ja"),
    _page("sylpheed-ja", "ja", "sylpheed-doc", r"/ja/.*\.html$"),
    _page("omegat-ja", "ja", "omegat", r"/ja/.*\.html$"),
    _page("logback-ja", "ja", "liblogback-java-doc", r"_ja\.html$"),
    Source("scilab-ja", "ja", "scilab-doc-ja", r"_ja_JP_help\.jar$", readers.page_archive),
    Source("lyx-ja", "ja", "lyx-common", r"/doc/ja/.*\.lyx$", readers.lyx_document),
    _text("wanderlust-ja", "ja", "wl", r"-ja\.info.*gz$", "\x1f\n"),
    _text("ddskk-ja", "ja", "ddskk", r"(info.*gz|\.txt|\.ja)$", "\x1f\n"),
]

_JAPANESE_MESSAGES = [
    _messages(f"{package}-messages-ja", "ja", package)
    for package in """aptitude-common audacity-data binutils-common cinnamon-l10n claws-mail-i18n coreutils dpkg
    gcc-12-locales gnucash-common gnupg-l10n gramps k3b-i18n krita-l10n libc-l10n libgtk-3-common libvirt-l10n
    mercurial-common phpmyadmin postgresql-client-15 sphinx-common subversion util-linux-locales vlc-l10n wget
    wordpress-l10n""".split()
] + [_messages("libreoffice-messages-ja", "ja", "libreoffice-l10n-ja", r"\.mo$")]

_SEVERAL_LANGUAGES = [
    *_each_language(_page, "groonga", "groonga-doc", r"/{}/html/.*\.html$", _without(_SHORT, "zh", "ko"), skip=_SPHINX_INDEXES),
    *_each_language(_xml, "gnome-help", "gnome-user-docs", r"/help/{}/.*\.(page|docbook|xml)$", {**_POSIX, "en": "C"}),
    *_each_language(_page, "apache", "apache2-doc", r"/manual/{}/.*\.html$", {**_LOWER, "en": "en"}),
    *_each_language(_page, "harden", "harden-doc", r"/{}/.*\.html$", _without(_REGION, "zh", "ko")),
    *_each_language(_page, "debian-handbook", "debian-handbook", r"/{}/.*\.html$", _REGION),
    *_each_language(_page, "installation-guide", "installation-guide-amd64", r"/{}/.*\.html$", _POSIX),
    *_each_language(_page, "linux", "linux-doc-6.1", r"/html/translations/{}/.*\.html$", {"zh": "zh_CN", "ko": "ko_KR"},
                    skip=_SPHINX_INDEXES),
    *_each_language(_messages, "cataclysm", "cataclysm-dda-data", r"/{}/LC_MESSAGES/.*\.mo$", _without(_POSIX, "en"),
                    markup=r"</?color[^>]*>"),
    _messages("cataclysm-en", "en", "cataclysm-dda-data", r"/ja/LC_MESSAGES/.*\.mo$", markup=r"</?color[^>]*>", original=True),
    *_each_language(_text, "crawl", "crawl-common", r"/descript/{}/.*\.txt$", _without(_SHORT, "en"), separator=r"\n%%%%\n"),
    _text("crawl-en", "en", "crawl-common", r"/(descript|database)/[a-z]*\.txt$", r"\n%%%%\n"),
]

_ENGLISH = [
    _page("anarchism-en", "en", "anarchism"),
    Source("bible-en", "en", "sword-text-web", r"\.bzz$", readers.sword_text, beside=r"\.bzs$"),
    _text("fortunes-en", "en", "fortunes", r"/fortunes/[a-z-]+$", r"\n%\n"),
    _text("jargon-en", "en", "jargon-text", r"jargon\.txt\.gz$", r"\n(?=   :\S)"),
    Source("foldoc-en", "en", "dict-foldoc", r"\.index$", readers.dictionary, beside=r"\.dict\.dz$"),
    _page("mh-en", "en", "mh-book", r"\.html?$", "/index/"),
    _page("python-manual-en", "en", "python3.11-doc", skip=_SPHINX_INDEXES + "|/whatsnew/changelog"),
    _page("postgresql-en", "en", "postgresql-doc-15", skip=r"bookindex|/index\.html"),
    _page("git-en", "en", "git-doc"),
    _page("sqlite-en", "en", "sqlite3-doc", skip="search|keyword_index|doclist|sitemap|syntax/"),
    _page("django-en", "en", "python-django-doc", skip=_SPHINX_INDEXES),
    _page("r-manual-en", "en", "r-doc-html"),
    _page("rust-books-en", "en", "rust-web-doc",
          r"/html/(book|reference|nomicon|rust-by-example|cargo|rustc|rustdoc|edition-guide|embedded-book|unstable-book"
          r"|clippy|style-guide)/.*\.html$", r"print\.html|toc\.html|/(ja|es|ko|zh)/|first-edition|second-edition"),
    _page("linux-en", "en", "linux-doc-6.1", r"/html/.*\.html$", _SPHINX_INDEXES + "|/translations/"),
]

_CODE = [
    _code("libstdc++", "libstdc++-12-dev", r"/include/c\+\+/12/[^.]*(\.(h|tcc|hpp))?$"),
    _code("gnulib", "gnulib", r"\.[ch]$"),
]

CORPORA = {
    "quick": QUICK,
    "full": QUICK + _JAPANESE_MANUALS + _JAPANESE_MESSAGES + _SEVERAL_LANGUAGES + _ENGLISH + _CODE,
}

# Least megabytes of training text per domain; a build that ends with less has lost a source.
LEAST_MEGABYTES = {
    "quick": {"en": 10, "ja": 10, "code": 3, "zh": 1.5, "ko": 1.5},
    "full": {"en": 75, "ja": 30, "code": 10, "zh": 3, "ko": 2},
}

# The tokenizer's sample: megabytes of each domain's training text.
TOKENIZER_SAMPLE_MEGABYTES = {"en": 3.0, "ja": 3.0, "code": 1.2, "zh": 0.5, "ko": 0.5}

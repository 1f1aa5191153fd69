"""tools/corpus on small inputs of our own."""

import gzip
import io
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))

from corpus_lib import build, debian, extract, readers, sample, sources, split, text  # noqa: E402

LONG_JA = "これは文書の本文であり、重複を調べるのに十分な長さを持つ一行である。"
LONG_EN = "This sentence is long enough to be looked up among the lines that came before it."


class TextTest(unittest.TestCase):
    def test_line_breaks_between_cjk_characters_vanish(self):
        self.assertEqual(text.join_unspaced_lines("日本語の\n  文章。\n次の文"), "日本語の文章。次の文")
        self.assertEqual(text.join_unspaced_lines("简体\n中文"), "简体中文")

    def test_line_breaks_beside_latin_and_hangul_stay(self):
        for kept in ("two\nwords", "日本\nlinux", "한국어\n문장"):
            self.assertEqual(text.join_unspaced_lines(kept), kept)

    def test_html_becomes_one_line_per_block(self):
        page = "<!-- no --><h1>Title &amp; more</h1><p>One\n  two <b>three</b>.<ul><li>a<li>b</ul><script>x<y</script>"
        self.assertEqual(text.html_to_text(page), "Title & more\nOne two three.\na\nb")

    def test_preformatted_text_keeps_its_lines_and_spaces(self):
        self.assertEqual(text.html_to_text("<p>a</p><pre>if x:\n    y</pre>"), "a\nif x:\n    y")

    def test_navigation_is_left_out(self):
        page = '<nav><p>menu</p></nav><div class="sidebar left"><div>in</div>x</div><p id="toc">t</p><p id="stock">kept</p>'
        self.assertEqual(text.html_to_text(page), "kept")

    def test_hidden_elements_are_left_out(self):
        page = '<p>press <span hidden="true" class="MAC">Command</span><span class="not hidden">Ctrl</span>+B</p>'
        self.assertEqual(text.html_to_text(page), "press Ctrl+B")

    def test_one_element_of_a_page(self):
        page = '<div>a</div><div id="main"><div>b</div>c</div><div>d</div>'
        self.assertEqual(text.html_to_text(page, inside="main"), "b\nc")
        self.assertEqual(text.html_to_text(page, inside="other"), "")

    def test_escaped_tags_are_text(self):
        self.assertEqual(text.html_to_text('<p title="a > b">x &lt;b&gt; y</p>'), "x <b> y")

    def test_docbook_without_its_info(self):
        self.assertEqual(text.xml_to_text("<page><info><desc>who</desc></info><p>what</p></page>"), "what")

    def test_untranslated_lines_are_dropped(self):
        english = "Nobody has translated this line of the manual page so far."
        self.assertEqual(text.clean(f"{LONG_JA * 2}\n{english}", "ja"), LONG_JA * 2)
        self.assertEqual(text.clean(english * 3, "ja"), "")
        self.assertEqual(text.clean(LONG_EN * 2, "en"), LONG_EN * 2)

    def test_bytes_that_utf8_cannot_have_are_dropped(self):
        self.assertEqual(text.clean("x" * 100 + "\ud800\0", "en"), "x" * 100)


class SplitTest(unittest.TestCase):
    def test_translations_have_one_key(self):
        for group in (
            ("help/en-US/text/a.html", "help/ja/text/a.html", "help/zh-CN/text/a.html", "help/ko/text/a.html"),
            ("doc/page.html", "doc/page.ja.html"),
            ("usr/share/man/man1/ls.1.gz", "usr/share/man/ja/man1/ls.1.gz", "usr/share/man/ja.UTF-8/man1/ls.1.gz"),
            ("help/C/x.page", "help/zh_CN/x.page"),
        ):
            self.assertEqual(len({split.page_key(path) for path in group}), 1, group)
        self.assertNotEqual(split.page_key("a/b.html"), split.page_key("a/c.html"))

    def test_shares_and_determinism(self):
        counts = dict.fromkeys(split.SPLITS, 0)
        for number in range(20000):
            counts[split.split_of(f"page {number}")] += 1
        self.assertTrue(500 <= counts["valid"] <= 700 and 500 <= counts["test"] <= 700, counts)
        # Written down: a change would move documents from training to test.
        self.assertEqual([split.split_of(f"page {n}") for n in (0, 62, 89)], ["train", "valid", "test"])

    def test_repeated_documents_and_lines_are_dropped(self):
        seen = split.Deduplicator("ja")
        other = LONG_JA.replace("文書", "別の書")
        first = "\n".join((LONG_JA, "短い行", LONG_JA.replace("本文", "序文"), LONG_JA.replace("一行", "二行")))
        self.assertEqual(seen.keep(first), first)
        self.assertEqual(seen.keep(first.replace("\n", " \n")), "")
        self.assertEqual(seen.keep(f"{LONG_JA}\n短い行\n{other}{other}{other}"), f"短い行\n{other}{other}{other}")
        self.assertEqual(seen.keep(LONG_JA + "\n短い行"), "")  # too short without its repeated line

    def test_code_may_repeat_lines(self):
        seen = split.Deduplicator("code")
        body = "\n".join(f"value_{n} = compute_something_long_enough_to_count({n})" for n in range(5))
        self.assertEqual(seen.keep(body), body)
        self.assertEqual(seen.keep(body + "\nmore = 1"), body + "\nmore = 1")
        self.assertEqual(seen.keep(body), "")


class ReaderTest(unittest.TestCase):
    def test_page_in_its_declared_charset(self):
        page = '<meta http-equiv="Content-Type" content="text/html; charset=EUC-KR"><p>한국어</p>'
        self.assertEqual([d.text for d in readers.html_page(readers.File("/k.html", page.encode("euc-kr")))], ["한국어"])

    def test_compressed_text_in_parts(self):
        file = readers.File("/f.gz", gzip.compress(b"one\n%\ntwo\r\nlines"))
        documents = list(readers.plain_text(file, separator=r"\n%\n"))
        self.assertEqual([(d.part, d.text) for d in documents], [("0", "one"), ("1", "two\nlines")])

    def catalogue(self, messages):
        strings = [(k.encode(), v.encode()) for k, v in sorted(messages.items())]
        tables, blob, start = [[], []], b"", 28 + 16 * len(strings)
        for side in range(2):
            for pair in strings:
                tables[side].append(struct.pack("<2I", len(pair[side]), start + len(blob)))
                blob += pair[side] + b"\0"
        head = struct.pack("<7I", 0x950412DE, 0, len(strings), 28, 28 + 8 * len(strings), 0, 0)
        return readers.File("/m.mo", head + b"".join(tables[0] + tables[1]) + blob)

    def test_catalogue_splits_by_the_original_message(self):
        messages = {f"message {n}": f"<b>訳 {n}</b>" for n in range(300)} | {"": "header", "menu\x04same": "same"}
        file = self.catalogue(messages)
        japanese = list(readers.catalogue(file, markup=r"</?b>"))
        english = list(readers.catalogue(file, original=True))
        for documents, prefix in ((japanese, "訳"), (english, "message")):
            lines = [(d.split, line) for d in documents for line in d.text.split("\n")]
            self.assertEqual(len(lines), 300)
            for where, line in lines:
                number = line.removeprefix(prefix).strip()
                self.assertEqual(where, split.split_of(f"message {number}"))
            self.assertTrue(all(d.text.count("\n") < 40 for d in documents))

    def test_package_descriptions(self):
        index = (
            "Package: one\nDescription-md5: 0\nDescription-ja: 短い題\n 一行目の\n 続き\n .\n  * 例\n 次の\n 段落\n\n"
            "Package: two\nDescription-md5: 1\nDescription-ko: 제목\n 본문\n"
        )
        documents = list(readers.package_descriptions(readers.File("/Translation-ja", index.encode()), "ja"))
        self.assertEqual([(d.part, d.text) for d in documents], [("one", "短い題\n一行目の続き\n* 例\n次の段落")])

    def test_dictionary_entries(self):
        beside = {"/d.dict.dz": gzip.compress(b"00-header|first entry|second entry")}
        index = "00-database\tA\tJ\nfirst\tK\tL\nagain\tK\tL\nsecond\tW\tM\n"
        documents = list(readers.dictionary(readers.File("/d.index", index.encode(), beside)))
        self.assertEqual([(d.part, d.text) for d in documents], [("first", "first entry"), ("second", "second entry")])

    def test_code_of_a_sensible_size_in_utf8(self):
        self.assertEqual(len(list(readers.code_file(readers.File("/a.py", b"x = 1\n" * 50)))), 1)
        self.assertEqual(list(readers.code_file(readers.File("/b.py", b"x = 1\n"))), [])
        self.assertEqual(list(readers.code_file(readers.File("/c.py", b"\xff = 1\n" * 50))), [])


class TinyPackages:
    """Stands where debian.Packages does: each package is a folder of files."""

    def __init__(self, folder):
        self._folder = folder

    def size(self, name):
        return len(name)

    def read(self, name, wanted):
        root = self._folder / name
        for path in sorted(root.rglob("*")):
            inner = "/" + str(path.relative_to(root))
            if path.is_file() and wanted(inner):
                yield inner, path.read_bytes()


class BuildTest(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.addCleanup(self._folder.cleanup)
        self.packages = TinyPackages(self.folder)
        bodies = {"en": "Page {0} says: " + LONG_EN * 4 + " {0}", "ja": "頁{0}の" + LONG_JA * 4 + "{0}"}
        self.sources = []
        for language, body in bodies.items():
            root = self.folder / f"help-{language}" / language
            root.mkdir(parents=True)
            for number in range(200):
                (root / f"p{number}.html").write_text(f"<p>{body.format(number)}</p>", encoding="utf-8")
            self.sources.append(
                sources.Source(f"help-{language}", language, f"help-{language}", r"/p\d+\.html$", readers.html_page, "p199"))

    def extract(self):
        extract.extract(self.sources, self.packages, self.folder / "texts", lambda *_: None)

    def records(self, domain, which):
        lines = (self.folder / "out" / domain / f"{which}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def test_from_pages_to_splits(self):
        self.extract()
        counts = build.assemble(self.sources, self.folder / "texts", self.folder / "out")
        self.assertEqual(sum(counts["help-ja"][which][0] for which in split.SPLITS), 199)
        for which in split.SPLITS:
            english, japanese = self.records("en", which), self.records("ja", which)
            self.assertEqual(set(english[0]), {"id", "source", "text"})
            pages = [{Path(record["id"]).name for record in records} for records in (english, japanese)]
            self.assertEqual(pages[0], pages[1])
            self.assertEqual(counts["help-en"][which][1], sum(len(r["text"].encode()) for r in english))
        raw = (self.folder / "out/ja/train.jsonl").read_text(encoding="utf-8")
        self.assertIn("これは文書", raw)  # not \u escapes
        self.assertEqual(list((self.folder / "out").rglob("*.part")), [])

        build_sample = io.StringIO()
        for domain in sources.DOMAINS:
            (self.folder / "out" / domain).mkdir(exist_ok=True)
            (self.folder / "out" / domain / "train.jsonl").touch()
        sample.write_tokenizer_sample(build_sample, self.folder / "out")
        held_out = {record["text"] for record in self.records("en", "test")}
        self.assertTrue(held_out)
        self.assertFalse(held_out & set(build_sample.getvalue().split("\n")))
        self.assertEqual(build_sample.getvalue().count("\n"), len(self.records("en", "train")) + len(self.records("ja", "train")))

    def test_extraction_goes_on_where_it_was(self):
        self.extract()
        whole = (self.folder / "texts/help-ja/help-ja.jsonl").read_bytes()
        shutil.rmtree(self.folder / "texts/help-en")
        for page in (self.folder / "help-ja").rglob("*.html"):
            page.unlink()  # a finished source isn't read again
        self.extract()
        self.assertEqual((self.folder / "texts/help-ja/help-ja.jsonl").read_bytes(), whole)
        self.assertEqual((self.folder / "texts/help-en/help-en.jsonl").read_text(encoding="utf-8").count("\n"), 199)

    def test_copyright_files(self):
        documentation = self.folder / "help-ja/usr/share/doc/help-ja"
        documentation.mkdir(parents=True)
        (documentation / "copyright").write_text("License: MIT\n")
        self.extract()
        self.assertEqual(extract.copyright_text(self.packages, "help-ja", self.folder / "texts"), "License: MIT\n")
        with self.assertRaisesRegex(debian.CorpusError, "help-en"):
            extract.copyright_text(self.packages, "help-en", self.folder / "texts")

    def test_too_little_text_is_an_error(self):
        sizes = {d: {"train": {"bytes": int(m * 1e6)}} for d, m in sources.LEAST_MEGABYTES["quick"].items()}
        rows = [{"name": "s", "documents": 1}]
        build.check_sizes({"corpus": "quick", "domains": sizes, "sources": rows})
        with self.assertRaisesRegex(debian.CorpusError, "no document from s"):
            build.check_sizes({"corpus": "quick", "domains": sizes, "sources": [{"name": "s", "documents": 0}]})
        sizes["ja"]["train"]["bytes"] -= 10
        with self.assertRaisesRegex(debian.CorpusError, "domain ja"):
            build.check_sizes({"corpus": "quick", "domains": sizes, "sources": rows})

    def test_a_finished_corpus_is_left_alone(self):
        done = {"recipe": build.recipe_digest("quick"), "domains": {}}
        (self.folder / "sources.json").write_text(json.dumps(done))
        self.assertFalse(build.build("quick", self.folder))
        command = [sys.executable, "-B", REPOSITORY / "tools/corpus", "quick", "--output", self.folder]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        self.assertIn("was there already", result.stdout)


class SampleTest(unittest.TestCase):
    def test_lines_are_cut_and_complete(self):
        lines = list(sample.sample_lines("短い\n\n" + "長" * 3000))
        self.assertEqual("".join(lines), "短い" + "長" * 3000)
        self.assertLessEqual(max(map(len, lines)), 1200)

    def test_documents_are_taken_from_everywhere(self):
        documents = [f"{n:04}" for n in range(1000)]
        taken = [int(d) for d in sample.spread(documents, 4000, 400)]
        self.assertTrue(95 <= len(taken) <= 105 and taken[-1] > 950, taken)
        self.assertEqual(len(list(sample.spread(documents, 4000, 4000))), 1000)


class LicenceTest(unittest.TestCase):
    def test_names(self):
        fields = "Format: https://example.org\n\nFiles: *\nLicense: GPL-2+\n\nFiles: a\nLicense: MIT\n\nLicense: MIT\n text"
        self.assertEqual(debian.licence_names(fields), ["GPL-2+", "MIT"])
        self.assertEqual(debian.licence_names("On Debian see /usr/share/common-licenses/GPL-3."), ["GPL-3"])
        self.assertEqual(debian.licence_names("Do as you like."), ["see its copyright file"])


class TableTest(unittest.TestCase):
    def test_names_are_unique_and_domains_known(self):
        for name, table in sources.CORPORA.items():
            names = [source.name for source in table]
            self.assertEqual(len(names), len(set(names)))
            self.assertEqual({source.domain for source in table}, set(sources.DOMAINS))
            self.assertEqual(set(sources.LEAST_MEGABYTES[name]), set(sources.DOMAINS))


if __name__ == "__main__":
    unittest.main()

"""Texts that tokenizers get wrong: one list for every test, and the frames that tokenizer_probe speaks."""
import json
import pathlib
import random
import struct
import subprocess
import unicodedata

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

ODD = [
    "", " ", "  ", "\n", "\t", "\r\n", "\x00", "a\x00b\x00\x00c", "Hello world", " Hello", "Hello ", "  Hello  world  ",
    "I'm you're HE'LL we'Ve it'S don'T 'tis 'S 'ſ x'ſy I’m 'lL'RE 'd'd'm", "''s'''re '", "O'Reilly's 'quoted' text's",
    "3.14159 1,000,000 12345678901234567890 0x1F 1e-5 v2.0 ٣٤٥ ৩৪৫ １２３４ ½ ² ③ Ⅷ 四 𝟘𝟙 １st 2nd",
    "a" * 5000, "ab" * 3000, " " * 3000, "\n" * 999, "\t" * 500 + "x", " \n" * 300, "\r\n" * 300 + "x", "-" * 777,
    "=" * 33 + " " + "=" * 64, "x" + " " * 17 + "y" + " " * 18 + "\n" + " " * 19, "​​ﻠ﷽﷽", "日" * 2000,
    "0" * 1000, "if (a) {\n\n        return   b;\t\t// c\n    }\r\n\r\n  \n", " \u00a0 \u2003\u3000x\u1680y\u180ez\u2028\u0085",
    "日本語の文章です。東京都に住んでいます。「カギ」カッコ、ﾊﾝｶｸ", "中文文本，没有空格。简体和繁體。", "한국어 문장도 있습니다. 각각",
    "العَرَبِيَّة ‏نص‏ עִבְרִית ไทยภาษา हिन्दी தமிழ் မြန်မာ ខ្មែរ ქართული", "Ελληνικά Русский Ёё ñ ß ẞ ﬁ ǅ İ ı",
    "😀👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇯🇵🇰🇷 ❤️ 1️⃣ #️⃣ 🫠🪿", "😀" * 200, "👨‍💻 codes 👩🏿‍🚀", "e\u0301 e\u0327\u0301 e\u0301\u0327 a\u030a\u0301 \u0344 \u212b \u2126 \u0958",
    "q\u0307\u0323 q\u0323\u0307 \u1e9b\u0323 \u0041\u030a\u0327\u0323\u0301", "\u1112\u1161\u11ab\u1100\u1173\u11af \u1100\uac00\u11a8 \uac00\u11a8\u11a8 \u1161\u11a8",
    "\u304b\u3099\u3053\u3099 \u30cf\u309a\uff8a\uff9f \u0cc6\u0cc2\u0cd5 \u0b47\u0b56 \u09c7\u09be \U00011131\U00011127 \U00011935\U00011930 \ufb1d\u05bc \U0001d15e",
    "\u1df6\u0301 a\u1df6\u0301 \u0898\u0334 e\u0898\u0301 a\u0301\u1abf\u0323", "\u0301", "\u0301\u0323a", "\u0323" * 100 + "\u0301" * 100,
    "<s> </s> <unk> <0x0A> <0x41><0xFF> <|endoftext|><|im_start|>user\n<|im_end|> [INST] x [/INST]<tool_call> <mask> <sep>",
    "<|begin_of_text|><|eot_id|> <|reserved_special_token_7|><|reserved_special_token_77|> <|endoftext", " <mask>  x <mask>y<mask>\n",
    "a  <sep> \t b<sep><sep>  <sep>c", "caf\u00e9\u0301x cafe\u0301\u0301x CAF\u00c9\u0301X", "<s><s>a<s>", "</s>", "[INST]\u2581[INST] x", " <s> a",
    "\u2581", "\u2581\u2581x", " \u2581 x", "x\u2581y z", "\ufffd\ufffe\uffff\U0010ffff", "\ufeffBOM", "\x7f\x80\x9f\xad",
    "https://example.org/a?b=c&d=%20#e user@host.tld C:\\dir\\file.txt --long-option=value snake_case camelCase XMLHttpRequest",
    "Zürich, naïve café — “quotes” … ‘single’ «guillemets» · • ★ ♥ € £ ¥ ₿ ™ © ∑ ∞ ≠ √ α β γ", "A\u0300BC\u0301 Å Ω K", "\u00e9\u0301" * 50,
    "\U0001f9d1\u200d\U0001f91d\u200d\U0001f9d1", "supercalifragilisticexpialidocious" * 40, "ab cd\n\n\n  ef\n \n gh \t\n", "a\u2028b\u2029c\x0bd\x0ce\x1cf\x1fg",
    "١٢٣abc４５６ ١", "3日 5個 第10回", "\u0e33\u0e33 \u0f73\u0f75", "()[]{}<>!@#$%^&*;:',.?/|~`", "...!!!???,,,", "a.b,c;d:e", "!\n!\r\n!\n\n !", "x\r", "\ra\r\rb",
]


def random_texts(count, seed=11):
    """Characters of many blocks, marks after letters, spaces and digits of all kinds."""
    draw = random.Random(seed)
    marks = [chr(c) for c in range(0x300, 0x20000) if unicodedata.combining(chr(c))]
    blocks = [(0x20, 0x7f), (0xa0, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xe80), (0x1100, 0x1200),
              (0x1e00, 0x2000), (0x2000, 0x2070), (0x2100, 0x2c00), (0x3000, 0x3100), (0x4e00, 0x9fff), (0xac00, 0xd7a4),
              (0xf900, 0x10000), (0x10000, 0x12000), (0x16000, 0x17000), (0x1d000, 0x1e300), (0x1e4d0, 0x1e600), (0x1f300, 0x1fb00), (0x2f800, 0x2fa20)]
    spaces = [" ", " ", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2009"]
    texts = []
    for _ in range(count):
        text = ""
        for _ in range(draw.randrange(1, 40)):
            first, last = draw.choice(blocks)
            for _ in range(draw.randrange(1, 9)):
                text += chr(draw.randrange(first, last))
                while draw.random() < 0.2:
                    text += draw.choice(marks)
            text += draw.choice(spaces) if draw.random() < 0.6 else draw.choice(["", "'s", "'LL", "1", "23", "."])
        texts.append(text)
    return texts


def all_code_points():
    """Every character within, before and after a word, in texts of a few kilobytes."""
    points = [chr(c) for c in range(0x110000) if not 0xd800 <= c < 0xe000]
    return ["".join(f"a{c}b {c} 1{c}\n" for c in points[i:i + 512]) for i in range(0, len(points), 512)]


def source_texts():
    """The text of this project: C++, Python, shell, prose."""
    names = sorted(path for folder in ("include", "src", "data", "tools", "tests") for path in (ROOT / folder).rglob("*")
                   if path.suffix in (".hpp", ".cpp", ".py", ".md", ".txt"))
    return [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *names]]


def corpus_texts(corpus, split):
    return [json.loads(line)["text"] for path in sorted(pathlib.Path(corpus).glob(f"*/{split}.jsonl"))
            for line in open(path, encoding="utf-8")]


def frames(texts):
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def run_probe(probe, *arguments, texts=()):
    return subprocess.run([str(word) for word in (probe, *arguments)], input=frames(texts), capture_output=True)


def our_ids(probe, tokenizer, texts):
    """Dropcycle's ids and decoded text of each text."""
    process = run_probe(probe, "ids", tokenizer, texts=texts)
    if process.returncode:
        raise SystemExit(f"tokenizer_probe {tokenizer}: {process.stderr.decode()[:1000]}")
    out, place, results = process.stdout, 0, []
    for _ in texts:
        count, = struct.unpack_from("<I", out, place)
        ids = list(struct.unpack_from(f"<{count}i", out, place + 4))
        place += 4 + 4 * count
        size, = struct.unpack_from("<I", out, place)
        results.append((ids, out[place + 4:place + 4 + size].decode()))
        place += 4 + size
    return results

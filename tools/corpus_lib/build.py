"""The stages from packages to a corpus. Each leaves its result under its final name only when it is whole."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from .debian import CorpusError, Packages, licence_names
from .extract import copyright_text, extract
from .sample import write_tokenizer_sample
from .sources import CORPORA, DOMAINS, LEAST_MEGABYTES
from .split import SPLITS, Deduplicator


class Stages:
    """Progress: a line with the time since the start, and how long each stage took."""

    def __init__(self):
        self._start = self._last = time.monotonic()

    def say(self, text):
        self._last = time.monotonic()
        print(f"[{self._last - self._start:6.1f} s] {text}", flush=True)

    def progress(self, done, total, name):
        """Says how far the stage is, every few seconds."""
        if time.monotonic() - self._last > 5:
            self.say(f"  {done} of {total} packages, now {name}")


def write_whole(path, write):
    """Calls write(file) on a temporary file and gives it its name when it is complete."""
    temporary = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "w", encoding="utf-8") as file:
        write(file)
    temporary.rename(path)


def recipe_digest(name):
    """Changes with the code that makes the corpus, so that an old corpus is made anew after an update."""
    state = hashlib.blake2b(name.encode(), digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        state.update(path.read_bytes())
    return state.hexdigest()


def assemble(sources, folder, output):
    """Deduplicates each domain and writes its three splits. Returns {source: {split: [documents, bytes]}}."""
    counts = {source.name: {split: [0, 0] for split in SPLITS} for source in sources}
    for domain in DOMAINS:
        (output / domain).mkdir(parents=True, exist_ok=True)
        parts = {split: output / domain / f"{split}.jsonl.part" for split in SPLITS}
        deduplicator = Deduplicator(domain)
        with contextlib.ExitStack() as stack:
            files = {split: stack.enter_context(open(part, "w", encoding="utf-8")) for split, part in parts.items()}
            for source in (source for source in sources if source.domain == domain):
                for identity, text, split in read_lines(folder / source.package / f"{source.name}.jsonl"):
                    text = deduplicator.keep(text)
                    if text:
                        record = {"id": identity, "source": source.name, "text": text}
                        files[split].write(json.dumps(record, ensure_ascii=False) + "\n")
                        counts[source.name][split][0] += 1
                        counts[source.name][split][1] += len(text.encode())
        for split, part in parts.items():
            part.rename(output / domain / f"{split}.jsonl")
    return counts


def read_lines(path):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def describe(name, sources, counts, packages, licences):
    """What goes into sources.json: sizes per domain, and package, version, licences and sizes per source."""
    domains = {
        domain: {
            split: {
                "documents": sum(counts[s.name][split][0] for s in sources if s.domain == domain),
                "bytes": sum(counts[s.name][split][1] for s in sources if s.domain == domain),
            }
            for split in SPLITS
        }
        for domain in DOMAINS
    }
    rows = [
        {
            "name": source.name,
            "domain": source.domain,
            "package": source.package,
            "version": packages.version(source.package),
            "licences": licence_names(licences[source.package]),
            "documents": sum(counts[source.name][split][0] for split in SPLITS),
            "bytes": sum(counts[source.name][split][1] for split in SPLITS),
        }
        for source in sources
    ]
    return {"corpus": name, "recipe": recipe_digest(name), "domains": domains, "sources": rows}


def markdown(description):
    """SOURCES.md: the same for a reader."""
    lines = [
        f"# Sources of the {description['corpus']} corpus",
        "",
        "Every text comes from a Debian package and stays under that package's licence (its copyright file is in"
        " licences/); most are copyleft.",
        "",
        "| domain | train documents | train MB | valid MB | test MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for domain, splits in description["domains"].items():
        sizes = " | ".join(f"{splits[split]['bytes'] / 1e6:.2f}" for split in SPLITS)
        lines.append(f"| {domain} | {splits['train']['documents']} | {sizes} |")
    lines += ["", "| source | domain | package | version | licences | documents | MB |", "|---|---|---|---|---|---:|---:|"]
    for row in description["sources"]:
        licences = ", ".join(row["licences"]).replace("|", "or")
        lines.append(f"| {row['name']} | {row['domain']} | {row['package']} | {row['version']} | {licences} |"
                     f" {row['documents']} | {row['bytes'] / 1e6:.2f} |")
    return "\n".join(lines) + "\n"


def check_sizes(description):
    """Fails where a domain has less training text than it must, or a source gave nothing."""
    for domain, least in LEAST_MEGABYTES[description["corpus"]].items():
        megabytes = description["domains"][domain]["train"]["bytes"] / 1e6
        if not megabytes >= least:
            raise CorpusError(f"domain {domain} has {megabytes:.2f} MB of training text, at least {least} MB were expected:"
                              " a package has changed; sources.json.failed shows what each source gave")
    empty = [row["name"] for row in description["sources"] if row["documents"] == 0]
    if empty:
        raise CorpusError(f"no document from {', '.join(empty)}: the package has changed; adapt tools/corpus_lib/sources.py")


def build(name, output):
    """Makes the corpus in `output`; returns False if it was there already."""
    finished = output / "sources.json"
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(f"another run is making the corpus in {output}: wait for it") from None
        if finished.exists() and json.loads(finished.read_text(encoding="utf-8")).get("recipe") == recipe_digest(name):
            return False
        finished.unlink(missing_ok=True)
        _build(name, output, finished)
    return True


def _build(name, output, finished):
    sources = CORPORA[name]
    stages = Stages()
    packages = Packages(output / "packages")
    names = sorted({source.package for source in sources})
    stages.say(f"download {len(names)} packages into {output / 'packages'} (nothing is installed)")
    came = packages.fetch([*names, "mandoc"])
    os.environ["PATH"] = f"{packages.program_folder('mandoc')}:{os.environ['PATH']}"
    stages.say(f"extract text from {len(sources)} sources on {os.cpu_count()} cores ({came / 1e6:.0f} MB came)")
    work = output / "work"
    texts = work / recipe_digest(name)
    extract(sources, packages, texts, stages.progress)
    licences = {package: copyright_text(packages, package, texts) for package in names}
    stages.say("drop what is there twice, split into train, valid and test")
    counts = assemble(sources, texts, output)
    description = describe(name, sources, counts, packages, licences)
    text = json.dumps(description, ensure_ascii=False, indent=1) + "\n"
    (output / "sources.json.failed").write_text(text, encoding="utf-8")
    check_sizes(description)
    stages.say("write the tokenizer's sample and the licences")
    write_whole(output / "tokenizer_sample.txt", lambda file: write_tokenizer_sample(file, output))
    for package, licence in licences.items():
        write_whole(output / "licences" / package, lambda file, licence=licence: file.write(licence))
    write_whole(output / "SOURCES.md", lambda file: file.write(markdown(description)))
    shutil.rmtree(work)
    (output / "sources.json.failed").rename(finished)
    stages.say("done")

"""From packages to documents: every package is read once, by one of several processes."""

import json
import multiprocessing
import os
import re
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from .debian import CorpusError
from .readers import File
from .split import page_key, split_of
from .text import clean

_DOCUMENTATION = re.compile(r"/usr/share/doc/[^/]+(/copyright)?")


class _Selection:
    """The files of a package that a source reads, and those it wants beside them."""

    def __init__(self, source):
        self.source = source
        self._files = re.compile(source.files)
        self._skip = re.compile(source.skip) if source.skip else None
        self._beside = re.compile(source.beside) if source.beside else None

    def reads(self, path):
        return bool(self._files.search(path)) and not (self._skip and self._skip.search(path))

    def holds(self, path):
        return bool(self._beside and self._beside.search(path))


def read_documents(source, file):
    """The documents of one file as [id, text, split], cleaned."""
    for document in source.reader(file, **source.options):
        text = clean(document.text, source.domain)
        if text:
            inner = file.path[1:] + (f"#{document.part}" if document.part else "")
            yield [f"{source.package}/{inner}", text, document.split or split_of(page_key(inner))]


def extract_package(packages, name, sources, folder):
    """Writes folder/NAME/: SOURCE.jsonl for each source of the package, and its copyright file or whose it is."""
    selections = [_Selection(source) for source in sources]
    temporary = folder / f"{name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    outputs = {source.name: open(temporary / f"{source.name}.jsonl", "w", encoding="utf-8") for source in sources}
    late, beside = [], {}

    def wanted(path):
        return _DOCUMENTATION.fullmatch(path) or any(s.reads(path) or s.holds(path) for s in selections)

    def write(source, file):
        for document in read_documents(source, file):
            outputs[source.name].write(json.dumps(document, ensure_ascii=False) + "\n")

    for path, data in packages.read(name, wanted):
        if path == f"/usr/share/doc/{name}/copyright" and isinstance(data, bytes):
            (temporary / "copyright").write_bytes(data)
        elif path == f"/usr/share/doc/{name}" and isinstance(data, str):
            (temporary / "copyright-owner").write_text(os.path.basename(data))
        elif isinstance(data, bytes):
            for selection in selections:
                if selection.holds(path):
                    beside[path] = data
                if selection.reads(path):
                    if selection.source.beside:
                        late.append((selection.source, path, data))
                    else:
                        write(selection.source, File(path, data))
    for source, path, data in late:
        write(source, File(path, data, beside))
    for output in outputs.values():
        output.close()
    temporary.rename(folder / name)


def _start_worker():
    """A worker ends quietly on Ctrl-C and SIGTERM; the parent says what happened."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def extract(sources, packages, folder, progress):
    """Extracts every package that isn't there yet, the largest first; calls progress(done, of, package)."""
    groups = {}
    for source in sources:
        groups.setdefault(source.package, []).append(source)
    folder.mkdir(parents=True, exist_ok=True)
    left = sorted((name for name in groups if not (folder / name).is_dir()), key=packages.size, reverse=True)
    with ProcessPoolExecutor(os.cpu_count(), initializer=_start_worker) as pool:
        tasks = {pool.submit(extract_package, packages, name, groups[name], folder): name for name in left}
        try:
            for done, task in enumerate(as_completed(tasks), start=1):
                task.result()
                progress(done, len(tasks), tasks[task])
        except BrokenProcessPool:
            raise CorpusError("a worker process was killed, perhaps for want of memory: run again, what is done is kept") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def copyright_text(packages, name, folder):
    """The copyright file of an extracted package, or of the package to whose documentation it links."""
    if name.startswith("apt:"):
        return "License: that of each described package\n"
    own, owner = folder / name / "copyright", folder / name / "copyright-owner"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    if owner.is_file():
        package = owner.read_text()
        packages.fetch([package])
        for _, data in packages.read(package, f"/usr/share/doc/{package}/copyright".__eq__):
            return data.decode("utf-8", "replace")
    raise CorpusError(f"package {name} has no copyright file: its texts can't be taken; remove it from"
                      " tools/corpus_lib/sources.py")

"""Debian packages as data: downloaded and unpacked in a folder of their own, never installed."""

import glob
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class CorpusError(Exception):
    """One line for the user: what, where, what was expected, what to do."""


class Packages:
    """Packages under `folder`: lists/ and cache/ for apt, archives/*.deb, unpacked/NAME/ for the files.

    Uses the machine's apt sources, but lists and cache stay inside, so it works without root and changes nothing.
    """

    def __init__(self, folder):
        self._folder = Path(folder).resolve()
        self._archives = self._folder / "archives"
        self._settings = {
            "Dir::State::lists": self._folder / "lists",
            "Dir::Cache": self._folder / "cache",
            "Acquire::Languages": "ja",  # Japanese package descriptions are a source
            "Acquire::Retries": 3,
            "APT::Sandbox::User": "root",  # no switch to user _apt, who can't write here
        }

    def fetch(self, names):
        """Downloads the archives that aren't there yet; returns how many bytes came."""
        names = sorted(name for name in names if not name.startswith("apt:"))
        for program in ("apt-get", "dpkg-deb"):
            if not shutil.which(program):
                raise CorpusError(f"{program} not found: the corpus is made of Debian 12 packages, run this on Debian 12")
        for folder in ("lists/partial", "cache/archives/partial", "archives"):
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
        missing = [name for name in names if self._archive(name) is None]
        if missing or not self.index_files("Translation-ja"):
            # One of the machine's sources may be down without harm; what is really missing fails below.
            self._apt("update", check=False)
        if not missing:
            return 0
        before = self._archive_bytes()
        self._apt("download", *missing)
        for name in missing:
            if self._archive(name) is None:
                raise CorpusError(f"package {name} didn't arrive in {self._archives}: check the network and run again")
        return self._archive_bytes() - before

    def unpack(self, names):
        """Unpacks every archive that isn't unpacked yet, several at a time."""
        names = [name for name in names if not name.startswith("apt:") and not self.root(name).is_dir()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._unpack, names))

    def _unpack(self, name):
        temporary = self.root(name + ".part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        result = subprocess.run(["dpkg-deb", "-x", self._archive(name), temporary], capture_output=True, text=True, check=False)
        if result.returncode:
            raise CorpusError(f"{self._archive(name)} can't be unpacked ({_last_line(result.stderr)}): delete it and run again")
        temporary.rename(self.root(name))

    def root(self, name):
        return self._folder / "unpacked" / name

    def index_files(self, name):
        """Files of apt's package index, such as Translation-ja of each suite."""
        return sorted(path for path in glob.glob(f"{self._folder}/lists/*{name}*") if os.path.isfile(path))

    def files(self, source):
        """The paths of a source's files, sorted."""
        if source.package.startswith("apt:"):
            return [path for path in self.index_files(source.package[4:]) if re.search(source.files, path)]
        wanted = re.compile(source.files)
        unwanted = re.compile(source.skip) if source.skip else None
        root = str(self.root(source.package))
        found = []
        for folder, _, names in os.walk(root):
            for name in names:
                path = f"{folder}/{name}"
                inner = path[len(root) :]
                if wanted.search(inner) and not (unwanted and unwanted.search(inner)) and not os.path.islink(path):
                    found.append(path)
        return sorted(found)

    def inner_path(self, source, path):
        """The path of a file inside its package, or its name if it is one of apt's."""
        if source.package.startswith("apt:"):
            return os.path.basename(path)
        return os.path.relpath(path, self.root(source.package))

    def version(self, name):
        if name.startswith("apt:"):
            return "the index of the day"
        return self._archive(name).name.split("_")[1].replace("%3a", ":")

    def copyright(self, name):
        """The text of the package's copyright file."""
        if name.startswith("apt:"):
            return "License: that of each described package\n"
        for owner in (name, *self.licence_owners([name])):
            path = self.root(owner) / "usr/share/doc" / owner / "copyright"
            if path.is_file():
                return path.read_text(encoding="utf-8", errors="replace")
        raise CorpusError(f"package {name} has no copyright file in {self.root(name)}: its texts can't be taken")

    def licence_owners(self, names):
        """The packages to whose documentation the packages link instead of having a copyright file."""
        folders = [self.root(name) / "usr/share/doc" / name for name in names if not name.startswith("apt:")]
        return sorted({os.path.basename(os.readlink(folder)) for folder in folders if folder.is_symlink()})

    def remove_unpacked(self):
        shutil.rmtree(self._folder / "unpacked", ignore_errors=True)

    def _archive(self, name):
        found = sorted(self._archives.glob(f"{glob.escape(name)}_*.deb"))
        return found[-1] if found else None

    def _archive_bytes(self):
        return sum(path.stat().st_size for path in self._archives.glob("*.deb"))

    def _apt(self, *arguments, check=True):
        command = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in self._settings.items()), *arguments]
        result = subprocess.run(command, cwd=self._archives, env={**os.environ, "LC_ALL": "C.UTF-8"},
                                capture_output=True, text=True, check=False)
        if check and result.returncode:
            raise CorpusError(
                f"apt-get {arguments[0]} failed ({_last_line(result.stderr)}): Debian 12's main section and a network are"
                f" needed; look into /etc/apt and run again, what has arrived is kept"
            )


def licence_names(copyright_text):
    """Licence names of a debian/copyright file; where it has no fields, the well-known names it mentions."""
    names = []
    if re.match(r"(Format|License)\b.*:", copyright_text.lstrip()):
        names = re.findall(r"^License:[ \t]*(\S.*?)\s*$", copyright_text, re.M)
    if not names:
        names = re.findall(r"/usr/share/common-licenses/([A-Za-z0-9.+-]*[A-Za-z0-9+])", copyright_text)
    if not names:
        names = re.findall(r"\b(?:GPL|LGPL|GFDL|BSD|MIT|Apache|public domain|PSF|Artistic)\b", copyright_text, re.I)
    return list(dict.fromkeys(names)) or ["see its copyright file"]


def _last_line(text):
    lines = [line for line in text.strip().split("\n") if line]
    return lines[-1] if lines else "no message"

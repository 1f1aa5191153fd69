"""Debian packages as data: downloaded and unpacked in a folder of their own, never installed."""

import glob
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path


class CorpusError(Exception):
    """One line for the user: what, where, what was expected, what to do."""


class Packages:
    """Packages in `folder`: lists/ and cache/ for apt, archives/*.deb; their files are read from the archives.

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

    def program_folder(self, name):
        """Unpacks a package whose program is to be run; returns the folder of its programs."""
        folder = self._folder / name
        if not folder.is_dir():
            temporary = self._folder / f"{name}.part"
            shutil.rmtree(temporary, ignore_errors=True)
            result = subprocess.run(["dpkg-deb", "-x", self._archive(name), temporary], stderr=subprocess.PIPE, text=True,
                                    check=False)
            if result.returncode:
                raise CorpusError(self._damaged(name, _last_line(result.stderr)))
            temporary.rename(folder)
        return folder / "usr/bin"

    def read(self, name, wanted):
        """Yields (path, data) of the files of a package whose path is wanted; data is the target's path for a link."""
        if name.startswith("apt:"):
            for path in self.index_files(name[4:]):
                command = ["/usr/lib/apt/apt-helper", "cat-file", path]
                # Not the file's own name: it has the mirror and the compression, and the path decides the split.
                yield "/" + name[4:], subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            return
        command = ["dpkg-deb", "--fsys-tarfile", self._archive(name)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                    for member in archive:
                        path = member.name.removeprefix(".")
                        if wanted(path) and (member.isreg() or member.issym()):
                            yield path, archive.extractfile(member).read() if member.isreg() else member.linkname
            except tarfile.TarError as error:
                raise CorpusError(self._damaged(name, error)) from None
            process.stdout.read()  # what tar leaves unread after its end mark
        if process.returncode:
            raise CorpusError(self._damaged(name, f"dpkg-deb ended with status {process.returncode}"))

    def index_files(self, name):
        """Files of apt's package index, such as Translation-ja of each suite."""
        return sorted(path for path in glob.glob(f"{self._folder}/lists/*{name}*") if os.path.isfile(path))

    def size(self, name):
        """Bytes of the archive, a hint at how long reading it takes."""
        return 0 if name.startswith("apt:") else self._archive(name).stat().st_size

    def version(self, name):
        if name.startswith("apt:"):
            return "the index of the day"
        return self._archive(name).name.split("_")[1].replace("%3a", ":")

    def _damaged(self, name, reason):
        return f"{self._archive(name)} can't be read ({reason}): delete it and run again"

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
        names += re.findall(r"\b(?:BSD|MIT|PSF|Artistic|GFDL|public domain)\b", copyright_text)
    return list(dict.fromkeys(names)) or ["see its copyright file"]


def _last_line(text):
    lines = [line for line in text.strip().split("\n") if line]
    return lines[-1] if lines else "no message"

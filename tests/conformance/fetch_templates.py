#!/usr/bin/env python3
"""Fetches the chat templates of real models, from PyPI.

usage: fetch_templates.py DIRECTORY

llama-cpp-python's source distribution carries llama.cpp, and with it 70 templates. DIRECTORY appears when all is there.
"""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

PACKAGE = "llama-cpp-python==0.3.36"
HASH = "sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
INSIDE = "/vendor/llama.cpp/models/templates/"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = pathlib.Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        scratch = pathlib.Path(scratch)
        requirements = scratch / "requirements.txt"
        requirements.write_text(f"{PACKAGE} --hash={HASH}\n")
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        download += ["--no-binary", "llama-cpp-python", "--dest", scratch, "--require-hashes", "--requirement", requirements]
        if subprocess.run(download).returncode != 0:
            sys.exit(f"cannot download {PACKAGE}: pip's reason is above; is PyPI, or your mirror of it, within reach?")
        (archive,) = scratch.glob("*.tar.gz")
        found = scratch / "templates"
        found.mkdir()
        with tarfile.open(archive) as files:
            for member in files:
                if INSIDE in member.name and member.name.endswith(".jinja"):
                    (found / pathlib.Path(member.name).name).write_bytes(files.extractfile(member).read())
        shutil.move(found, target)
    print(f"{len(list(target.iterdir()))} templates in {target}", file=sys.stderr)


main()

#!/usr/bin/env python3
"""Lets PyPI's PyTorch load on a machine without a GPU, without 2 GB of NVIDIA's libraries.

usage: cuda_stubs.py      (with the Python that PyTorch is installed for)

PyPI has PyTorch built for CUDA only. Its CPU half is all there, but the dynamic linker wants every library that the
other half names, with every symbol. This builds them, next to PyTorch's own: libraries whose every function says that
there is no device. Needs cc and readelf, which come with any C compiler.
"""

import collections
import ctypes
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tempfile

NO_DEVICE = 100  # cudaErrorNoDevice; and an error in all the other libraries too
# Asked for while PyTorch loads, with an answer that it looks at.
SPECIAL = {
    "cudaGetDeviceCount": f"int cudaGetDeviceCount(int *n) {{ *n = 0; return {NO_DEVICE}; }}",
    "cudaGetLastError": "int cudaGetLastError(void) { return 0; }",
    "cudaPeekAtLastError": "int cudaPeekAtLastError(void) { return 0; }",
    "cudaRuntimeGetVersion": "int cudaRuntimeGetVersion(int *v) { *v = 0; return 0; }",
    "cudaDriverGetVersion": "int cudaDriverGetVersion(int *v) { *v = 0; return 0; }",
}

# What one library says of itself: the libraries it needs, the symbols it has, and those it lacks, as (name, version)
# with "" for no version. `versions` says which library each version is wanted from.
Library = collections.namedtuple("Library", "needs has lacks versions")


def readelf(*arguments):
    done = subprocess.run(["readelf", "-W", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def examine(path):
    needs = {match[1] for line in readelf("-d", path) if (match := re.search(r"\(NEEDED\).*\[(.+)\]", line))}
    has, lacks = set(), set()
    for line in readelf("--dyn-syms", path):
        # Number: Value Size Type Bind Visibility Section Name[@Version] [(version number)]
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
            continue
        bind, section, (name, _, version) = fields[4], fields[6], fields[7].partition("@")
        if section != "UND":
            has.add(name)
        elif bind != "WEAK":
            lacks.add((name, version.lstrip("@")))
    versions, wanted_from = {}, None
    for line in readelf("-V", path):
        if match := re.search(r"\bFile: (\S+)", line):
            wanted_from = match[1]
        elif wanted_from and (match := re.search(r"\bName: (\S+)\s+Flags", line)):
            versions[match[1]] = wanted_from
    return Library(needs, has, lacks, versions)


def on_this_machine(name):
    """The library of that name, loaded; None if there is none."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def source(names):
    def define(name):
        if re.search("String|Name", name):
            return f'const char *{name}(void) {{ return "no CUDA here"; }}'
        return SPECIAL.get(name, f"int {name}(void) {{ return {NO_DEVICE}; }}")

    return "\n".join(define(name) for name in sorted(names)) + "\n"


def build(path, symbols, versions):
    """Builds a library that has `symbols`, as {version: names}, and at least these versions."""
    with tempfile.TemporaryDirectory() as scratch:
        code, script = pathlib.Path(scratch, "stub.c"), pathlib.Path(scratch, "stub.map")
        code.write_text(source(set().union(*symbols.values()) or {"warmpath_stub"}))
        command = ["cc", "-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-w", f"-Wl,-soname,{path.name}"]
        nodes = []
        for version in sorted(versions):
            names = "".join(f" {name};" for name in sorted(symbols.get(version, ())))
            nodes.append(f"{version} {{ global:{names} }};" if names else f"{version} {{ }};")
        if nodes:
            script.write_text("\n".join(nodes) + "\n")
            command.append(f"-Wl,--version-script={script}")
        subprocess.run([*command, "-o", str(path), str(code)], check=True)


def main():
    shipped = [pathlib.Path(file.locate()) for file in importlib.metadata.files("torch") or []]
    shipped = [file for file in shipped if file.parent.name == "lib" and ".so" in file.name]
    if not shipped:
        sys.exit("PyTorch is not installed for this Python: setup.sh installs it first")
    libraries = [examine(file) for file in shipped]
    ours = {file.name for file in shipped}
    needed = set().union(*(library.needs for library in libraries))
    present = {name: on_this_machine(name) for name in sorted(needed - ours)}
    missing = [name for name, library in present.items() if library is None]
    present = [library for library in present.values() if library is not None]
    if not missing:
        return
    has = set().union(*(library.has for library in libraries))
    symbols = {name: collections.defaultdict(set) for name in missing}
    versions = {name: set() for name in missing}
    # A name without version may come from any library. This one is loaded before all others, for all to see.
    catch_all = next((name for name in missing if name.startswith("libcudart.")), missing[0])
    for library in libraries:
        for version, wanted_from in library.versions.items():
            if wanted_from in versions:
                versions[wanted_from].add(version)
        for name, version in library.lacks:
            if version:
                wanted_from = library.versions.get(version)
            elif name in has or name.startswith(("Py", "_Py")) or any(hasattr(other, name) for other in present):
                wanted_from = None
            else:
                # Neither PyTorch has it, nor Python, nor the system: it is NVIDIA's.
                wanted_from = catch_all
            if wanted_from in symbols:
                symbols[wanted_from][version].add(name)
    for name in missing:
        build(shipped[0].parent / name, symbols[name], versions[name])
    print(f"stubs for {len(missing)} CUDA libraries in {shipped[0].parent}")


main()

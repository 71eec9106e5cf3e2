"""The layer that makes a disk fail: `fault_layer.c`, compiled when it is needed and preloaded into a process.

It stands between a process and the C library, so that the writers of Rust (safetensors, tokenizers), C++
(Arrow, torch) and Python are all covered. What goes to the kernel around the C library is not: safetensors
renames its temporary file so, inside a staging folder.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("fault_layer.c")
NO_COMPILER = "There is no C compiler (cc), so no disk can be made to fail: install gcc and run this again."
_END = 2**31 - 1


class LayerError(Exception):
    """The layer cannot be compiled or is not preloaded."""


class Operation(NamedTuple):
    """What changes a file or a folder: create, write, fsync, rename, exchange, link, mkdir or remove.

    `target` is the second path of a rename, an exchange or a link; `inode` is that of a write or an fsync.
    """

    kind: str
    path: str
    target: str = ""
    inode: int = 0


class Fault(NamedTuple):
    """Operation number `first` fails with this errno, and, if the fault stays, all after it."""

    first: int
    error: int
    stays: bool = False


def compile_layer(folder: Path) -> Path:
    """The shared library, compiled into a folder. Raises LayerError, also where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise LayerError(NO_COMPILER)
    library = folder / "fault_layer.so"
    options = ["-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-o", str(library), str(SOURCE)]
    done = subprocess.run(
        [compiler, *options, "-ldl", "-lpthread"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LayerError(f"cc cannot compile {SOURCE.name}: {done.stderr.strip()[:500]}")
    return library


class FaultLayer:
    """The preloaded layer of this process. Raises LayerError if it is not preloaded."""

    def __init__(self, library: Path) -> None:
        if str(library) not in os.environ.get("LD_PRELOAD", ""):
            raise LayerError(f"{library} is not preloaded.")
        self._layer = ctypes.CDLL(str(library))
        self._layer.fault_count.restype = ctypes.c_long
        self._layer.fault_log.restype = ctypes.c_char_p
        self._layer.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int]

    def arm(self, folder: Path, fault: Fault | None) -> None:
        """Watch a folder from here on, and let operations in it fail."""
        first, error, stays = fault or (0, 0, False)
        self._layer.fault_arm(os.fsencode(folder), first, _END if stays else first, error)

    def disarm(self) -> int:
        """Watch no longer; returns how many operations there were."""
        self._layer.fault_disarm()
        return self._layer.fault_count()

    def operations(self) -> list[Operation]:
        """The operations since the layer was armed."""
        lines = os.fsdecode(self._layer.fault_log()).splitlines()
        fields = (line.split("\t") for line in lines)
        return [Operation(kind, path, target, int(inode)) for kind, path, target, inode in fields]

"""The layer that makes disk operations fail: `fault_layer.c`, compiled on demand and preloaded.

It intercepts calls of the C library, so it covers writers in Rust (safetensors, tokenizers), C++ (Arrow,
torch) and Python. Direct system calls are not covered: safetensors renames its temporary file with one,
inside a staging folder.
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
    """A change of a file or folder: create, write, fsync, rename, exchange, link, mkdir or remove.

    `target` is the second path of a rename, an exchange or a link; `inode` belongs to a write or an fsync.
    """

    kind: str
    path: str
    target: str = ""
    inode: int = 0


class Fault(NamedTuple):
    """Operation number `first` fails with this errno; if the fault `stays`, so do all later ones."""

    first: int
    error: int
    stays: bool = False


def compile_layer(folder: Path) -> Path:
    """Compile the shared library into a folder. Raises LayerError, also without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise LayerError(NO_COMPILER)
    library = folder / "fault_layer.so"
    options = ["-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-o", str(library), str(SOURCE)]
    process = subprocess.run(
        [compiler, *options, "-ldl", "-lpthread"], capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise LayerError(f"cc cannot compile {SOURCE.name}: {process.stderr.strip()[:500]}")
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
        """Start to watch a folder, and let the operations of a fault fail."""
        first, error, stays = fault or (0, 0, False)
        self._layer.fault_arm(os.fsencode(folder), first, _END if stays else first, error)

    def disarm(self) -> int:
        """Stop watching; return the number of operations."""
        self._layer.fault_disarm()
        return self._layer.fault_count()

    def operations(self) -> list[Operation]:
        """Return the operations since the layer was armed."""
        lines = os.fsdecode(self._layer.fault_log()).splitlines()
        fields = (line.split("\t") for line in lines)
        return [Operation(kind, path, target, int(inode)) for kind, path, target, inode in fields]

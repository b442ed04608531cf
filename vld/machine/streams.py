"""Standard streams and cache folders that can be used in any environment."""

import codecs
import io
import os
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

LOOKALIKES = str.maketrans("–−±·×…→", "--~.x.>")  # of the same width: tables stay in line


def _lookalike(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    alike = error.object[error.start : error.end].translate(LOOKALIKES)
    return "".join(character if character.isascii() else "?" for character in alike), error.end


codecs.register_error("vld.lookalike", _lookalike)


def make_streams_usable() -> None:
    """A closed stream (`>&-`) becomes the null device; characters that an output cannot take, ones like them or `?`."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115
            try:
                os.fstat(number)
            except OSError:  # else the next file that is opened would be what child processes write to
                os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="vld.lookalike")


def place_caches(environment: MutableMapping[str, str], output_dir: Path) -> None:
    """Libraries keep their caches in the home folder where that can be written, else below `output_dir` or a temporary folder.

    Makes no folder. Weights that a library has already in the first are still read from there.
    """
    home = Path(environment.get("HOME") or tempfile.gettempdir())
    caches = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    if not _writable(caches):
        for variable, name in (("TORCH_HOME", "torch"), ("HF_HOME", "huggingface")):
            if (caches / name).is_dir():
                environment.setdefault(variable, str(caches / name))
        below = output_dir.absolute() / ".cache"
        caches = below if _writable(below) else Path(tempfile.gettempdir(), f"vld-{os.getuid()}")
        environment["XDG_CACHE_HOME"] = str(caches)
    for variable, name in (("XDG_CONFIG_HOME", ".config"), ("XDG_DATA_HOME", ".local/share")):
        folder = Path(environment.get(variable) or home / name)
        if not folder.is_dir() and not _writable(folder):  # what is there may still be read
            environment[variable] = str(caches / name)
    if not _writable(home / ".triton"):
        environment.setdefault("TRITON_CACHE_DIR", str(caches / "triton"))
    # Compiled programs are for later jobs, whose /tmp may be another; torch would put them there when it is imported.
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches / "vld" / "compiled"))


def _writable(folder: Path) -> bool:
    """Whether the folder, which need not exist, can be made and written: tried with a file that has no name."""
    try:
        nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=nearest):
            return True
    except OSError:
        return False

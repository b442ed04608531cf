"""`checkpoint.pt`: everything an unfinished run needs to resume exactly; never a partial file."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from vld.config.errors import damaged, first_line
from vld.machine.atomic import write_atomically


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Raises OSError if the disk is full; the previous checkpoint then stays."""
    serialised = io.BytesIO()  # to memory first: writing to a full disk, torch raises an obscure RuntimeError
    torch.save(state, serialised)
    write_atomically(path, lambda temporary: temporary.write_bytes(serialised.getbuffer()))


def read_checkpoint(path: Path, run_id: str) -> dict[str, Any]:
    """Tensors on the CPU and plain values; nothing in the file can execute code.

    Raises `UserError` if the file is damaged or another run's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if wrong := archive.testzip():  # torch does not look at the checksums
                raise zipfile.BadZipFile(f"wrong checksum of {wrong}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["run_id"] != run_id:
            raise ValueError(f"it belongs to run {state['run_id']}")
    except Exception as error:  # whatever torch and pickle make of arbitrary bytes
        raise damaged(path, first_line(error), "remove it to start the run again from step 0") from error
    assert isinstance(state, dict)
    return state

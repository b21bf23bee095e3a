"""Weights by content: what a folder's model or adapter is, whatever it is called and wherever it stands."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


def weights_digest(folder: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a folder's weights and configuration files, by name and content."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".json", ".model", ".jinja")]
    return _digest(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.cache  # a backbone is asked for several times in a run
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            whole.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]

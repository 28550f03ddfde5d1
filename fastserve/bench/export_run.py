"""The child process of export: runs a file as `python FILE OUT_DIR` would, then notes what it was made of.

    python -m fastserve.bench.export_run FILE OUT_DIR

writes OUT_DIR/manifest.json: digests of FILE and of the modules that it imported, libraries left out.
"""

from __future__ import annotations

import json
import runpy
import sys
import sysconfig
from pathlib import Path

from fastserve.bench.export import MANIFEST, file_digest


def main() -> None:
    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    sys.argv = [str(file), str(folder)]
    sys.path[0] = str(file.parent)
    try:
        runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    own = {str(file), *_imported()}
    manifest = {"files": {path: file_digest(Path(path)) for path in sorted(own)}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _imported() -> set[str]:
    """Source files of the modules that are nobody's library, and not FastServe."""
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    libraries.append(Path(__file__).parents[1])
    found = set()
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if not path or not path.endswith(".py") or Path(path).name.startswith("__autograph_generated"):
            continue
        if not any(Path(path).is_relative_to(library) for library in libraries):
            found.add(str(Path(path).resolve()))
    return found


if __name__ == "__main__":
    main()

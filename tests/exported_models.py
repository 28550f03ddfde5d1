"""SavedModels for tests, exported once for each state of their exporter and kept in build/."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXPORTER = HERE / "export_saved_models.py"
SERVED = HERE / "export_served_models.py"
INFERENCE = HERE / "export_inference_models.py"
TFLITE = HERE / "export_tflite_models.py"
PROFILE = HERE / "export_profile_models.py"
KERAS = HERE / "export_keras_models.py"


@cache
def exported_models(exporter: Path = EXPORTER) -> Path:
    """The directory with the models; DIR/half_plus_two/1 is a version, DIR/half_plus_two a base path."""
    versions = sorted(
        f"{dist.name}-{dist.version}"
        for dist in importlib.metadata.distributions()
        if dist.name.startswith(("tensorflow", "tf_"))
    )
    state = hashlib.sha256(exporter.read_bytes() + repr(versions).encode()).hexdigest()[:16]
    kept = HERE.parent / "build" / "test-models"
    kept.mkdir(parents=True, exist_ok=True)
    target = kept / state
    with open(kept / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test processes: one exports, the others wait
        if not target.exists():
            fresh = kept / f"{state}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            made = subprocess.run(
                [sys.executable, str(exporter), str(fresh)],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            if made.returncode != 0:
                raise RuntimeError(f"{exporter} failed:\n{made.stdout}\n{made.stderr[-4000:]}")
            fresh.rename(target)
    return target

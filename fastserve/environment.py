"""The environment and command lines of the child processes, and where TensorFlow and LiteRT are.

TensorFlow reads most of its process-wide settings from environment variables, so they are set here,
before the core and the trials start. Called by the daemon and the command line.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import fastserve
from fastserve.config import LiteRT, Model, TensorFlow
from fastserve.errors import StartError

_LOG_LEVELS = {"info": "0", "warning": "1", "error": "2", "fatal": "3"}
# Auto-clustering is allowed on the CPU too, and a shape is compiled when it is first seen: TensorFlow would
# rather see it a few times, and then it is a request that waits for it, not the warm-up. And clusters are
# named by their graph, not by how many this process has made before: the compile cache finds them by name.
_CLUSTER_FLAGS = (
    "--tf_xla_cpu_global_jit",
    "--tf_xla_enable_lazy_compilation=false",
    "--tf_xla_deterministic_cluster_names",
)
TENSOR_POOL_OFF = "TF_ONEDNN_USE_SYSTEM_ALLOCATOR"
XLA_CACHE_FLAG = "--tf_xla_persistent_cache_directory"
_DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tf-nightly", "tf-nightly-cpu")
LIBRARY = "libtensorflow_cc.so.2"
LITERT_LIBRARY = "libLiteRt.so"


@dataclass(frozen=True)
class InstalledTensorFlow:
    directory: str
    version: str


def installed_tensorflow() -> InstalledTensorFlow | None:
    """The TensorFlow beside this Python, without importing it; None when there is none."""
    try:
        spec = importlib.util.find_spec("tensorflow")
    except (ImportError, ValueError):
        return None
    for place in spec.submodule_search_locations or () if spec else ():
        if os.path.exists(os.path.join(place, LIBRARY)):
            return InstalledTensorFlow(place, _distribution_version())
    return None


def tensorflow_dir(config: TensorFlow) -> str:
    """The directory whose libraries are opened. StartError says how to get one."""
    if config.library_dir:
        if not os.path.exists(os.path.join(config.library_dir, LIBRARY)):
            raise StartError(
                f"[tensorflow] library_dir = {config.library_dir}: there is no {LIBRARY}; "
                "expected the directory of an installed tensorflow package"
            )
        return config.library_dir
    found = installed_tensorflow()
    if found is None:
        raise StartError(
            f"TensorFlow is not installed for {sys.executable}: pip install 'fastserve[tensorflow]' "
            "(or tensorflow-cpu), or set [tensorflow] library_dir to the directory of a tensorflow package"
        )
    return found.directory


def installed_litert() -> str:
    """The directory of the LiteRT beside this Python, without importing it; "" when there is none."""
    try:
        spec = importlib.util.find_spec("ai_edge_litert")
    except (ImportError, ValueError):
        return ""
    for place in spec.submodule_search_locations or () if spec else ():
        if os.path.exists(os.path.join(place, LITERT_LIBRARY)):
            return place
    return ""


def needs_tensorflow(models: tuple[Model, ...]) -> bool:
    """Whether any model may. What plug-ins' loaders prepare may be anything, and so may models to come when
    there are none."""
    return not models or any(model.platform != "tflite" for model in models)


def litert_dir(config: LiteRT) -> str:
    """The directory whose library is opened. StartError says how to get one."""
    if config.library_dir:
        if not os.path.exists(os.path.join(config.library_dir, LITERT_LIBRARY)):
            raise StartError(
                f"[litert] library_dir = {config.library_dir}: there is no {LITERT_LIBRARY}; "
                "expected the directory of an installed ai_edge_litert package"
            )
        return config.library_dir
    found = installed_litert()
    if not found:
        raise StartError(
            f"LiteRT, which runs TFLite models, is not installed for {sys.executable}: "
            "pip install 'fastserve[tflite]', or set [litert] library_dir to the directory of an "
            "ai_edge_litert package"
        )
    return found


def optional_litert_dir(config: LiteRT) -> str:
    """As litert_dir, but "" where none is installed: only TFLite models need it, and say so themselves."""
    return litert_dir(config) if config.library_dir else installed_litert()


def check_op_libraries(config: TensorFlow) -> None:
    """StartError for one that cannot be read. What is wrong inside it TensorFlow says when it loads it."""
    for path in config.op_libraries:
        if not os.path.isfile(path) or not os.access(path, os.R_OK):
            raise StartError(
                f"[tensorflow] op_libraries: {path}: no such file that can be read; expected a shared "
                "library of TensorFlow ops"
            )


def library_version(directory: str, library: str = LIBRARY) -> str:
    """What changes when another TensorFlow is installed in `directory`, or another `library`."""
    status = os.stat(os.path.join(directory, library))
    return f"{status.st_size} {status.st_mtime_ns}"


def child_argv(module: str) -> list[str]:
    """The command that runs a module of this package in a child. -P: the directory that the daemon was
    started in holds no modules of ours."""
    return [sys.executable, "-P", "-m", module]


def child_environment(tensorflow: TensorFlow, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process that runs models, whatever they ask of XLA: a model that does may be added
    while the process runs."""
    env = dict(inherited)
    package_root = Path(fastserve.__file__).resolve().parent.parent
    if package_root.name not in ("site-packages", "dist-packages"):
        # A checkout: the child finds it as this process did.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package_root), env.get("PYTHONPATH")]))

    if tensorflow.log_level == "fatal":
        env.setdefault("TF_CPP_MIN_LOG_LEVEL", _LOG_LEVELS["fatal"])
    else:
        env["TF_CPP_MIN_LOG_LEVEL"] = _LOG_LEVELS[tensorflow.log_level]

    # Sessions that do not ask for auto-clustering are not concerned.
    flags = env.get("TF_XLA_FLAGS", "").split()
    env["TF_XLA_FLAGS"] = " ".join([*flags, *(flag for flag in _CLUSTER_FLAGS if flag not in flags)])

    # Where the processor suits oneDNN, TensorFlow has tensors in a pool of its own, under one lock that
    # whoever frees one takes: a load that frees a large one holds it meanwhile, and requests wait.
    env.setdefault(TENSOR_POOL_OFF, "true")

    if tensorflow.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = "-1"
    elif tensorflow.visible_devices:
        env["CUDA_VISIBLE_DEVICES"] = tensorflow.visible_devices
    return env


def with_preloaded(env: Mapping[str, str]) -> dict[str, str]:
    """`env` for a process whose large reads are many small ones, and whose threads take breaks when those do
    that have made them (csrc/preload). Last of what is preloaded: a sanitizer insists on being first."""
    library = str(Path(fastserve.__file__).with_name("_native") / "libpreload.so")
    if any(character in library for character in " :"):
        return dict(env)  # the dynamic linker would take it for two
    return {**env, "LD_PRELOAD": " ".join(filter(None, [env.get("LD_PRELOAD"), library]))}


def with_xla_cache(env: Mapping[str, str], directory: str | Path, *, read_only: bool) -> dict[str, str]:
    """`env` for a process whose XLA keeps its executables in `directory`, or with `read_only` takes them from
    there and writes none."""
    escaped = str(directory).replace("\\", "\\\\").replace('"', '\\"')
    flags = [env.get("TF_XLA_FLAGS", ""), f'{XLA_CACHE_FLAG}="{escaped}"']
    if read_only:
        flags.append("--tf_xla_persistent_cache_read_only=true")
    return {**env, "TF_XLA_FLAGS": " ".join(filter(None, flags))}


def _distribution_version() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown version"

"""Builds the native code: csrc/ once, as a static library, and every Cython module linked with it.

Modes, by environment:
    FASTSERVE_WERROR=1                 warnings are errors, in C and in Cython
    FASTSERVE_SANITIZE=address|thread  built with that sanitizer
    FASTSERVE_ANNOTATE=1               Cython's annotated HTML beside the C that it generates
    FASTSERVE_NO_METRICS=1             counts nothing: for bench/counting.py, which measures that

Objects of one mode are no good in another: give each a tree of its own, with
`setup.py build --build-base build/werror`. Only what changed is built again.
TensorFlow is not needed here: csrc/tf.c opens the library that is installed where it runs.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

WERROR = os.environ.get("FASTSERVE_WERROR") == "1"
SANITIZE = os.environ.get("FASTSERVE_SANITIZE", "")
ANNOTATE = os.environ.get("FASTSERVE_ANNOTATE") == "1"
NO_METRICS = os.environ.get("FASTSERVE_NO_METRICS") == "1"

CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-g", "-fPIC", "-fvisibility=hidden", "-ffunction-sections"]
LDFLAGS = ["-Wl,--gc-sections"]
if WERROR:
    CFLAGS += ["-Wall", "-Wextra", "-Werror"]
if NO_METRICS:
    CFLAGS += ["-DFS_NO_METRICS"]
if SANITIZE:
    instrument = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}[SANITIZE]
    CFLAGS += [instrument, "-fno-omit-frame-pointer", "-O1"]
    LDFLAGS += [instrument]

PRELOADED = "fastserve/_native/libpreload.so"
PRELOADED_PARTS = ("preload/pread", "preload/free", "preload/threads", "slices", "breaks")

# What Cython 3 writes is not ours to correct.
GENERATED = [
    "-Wno-unused-function",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-Wno-sign-compare",
]


def system_libraries() -> tuple[list[str], list[str]]:
    """Compiler and linker flags for the libraries that csrc/ stands on."""
    pkg_config = os.environ.get("PKG_CONFIG", "pkg-config")
    try:
        cflags, libs = (
            subprocess.check_output([pkg_config, what, "libnghttp2", "zlib"], text=True).split()
            for what in ("--cflags", "--libs")
        )
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(
            "fastserve: pkg-config finds no libnghttp2 and zlib; "
            "apt-get install pkg-config libnghttp2-dev zlib1g-dev"
        ) from None
    return cflags, [*libs, "-lpthread", "-lrt", "-ldl", "-lm"]


class BuildNative(build_ext):
    """build_ext with the static library in front, and with dependencies as the compiler saw them."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or len(os.sched_getaffinity(0))
        if self.inplace:  # `pip install -e` names a folder of the moment, and would compile everything
            self.build_temp = "build/inplace"

    def build_extensions(self) -> None:
        from Cython.Build import cythonize
        from Cython.Compiler import Options

        # A Python built by pyenv asks for an rpath into its own tree; a wheel must not carry it.
        self.compiler.linker_so = [arg for arg in self.compiler.linker_so if not arg.startswith("-Wl,-rpath")]
        self.cflags, self.libs = system_libraries()
        with ThreadPoolExecutor(self.parallel) as pool:
            self.archive(list(pool.map(self.compile_source, sorted(glob("csrc/*.c")))))

        Options.warning_errors = WERROR
        generated = cythonize(self.extensions, build_dir=self.build_temp, annotate=ANNOTATE, language_level=3)
        for extension, built in zip(self.extensions, generated, strict=True):
            extension.sources = built.sources
        super().build_extensions()
        self.build_preloaded()

    def build_extension(self, ext: Extension) -> None:
        parts = [*(self.compile_source(source, *GENERATED) for source in ext.sources), self.library]
        path = self.get_ext_fullpath(ext.name)
        if newer_group(parts, path):
            self.compiler.link_shared_object(parts, path, extra_preargs=LDFLAGS, extra_postargs=self.libs)

    def build_preloaded(self) -> None:
        """The library that the dynamic linker puts before the C library; no module of Python's."""
        parts = [self.compile_source(f"csrc/{name}.c") for name in PRELOADED_PARTS]
        path = str(Path(self.build_lib, PRELOADED))
        if newer_group(parts, path):
            self.compiler.link_shared_object(parts, path, extra_preargs=LDFLAGS)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        self.copy_file(str(Path(self.build_lib, PRELOADED)), PRELOADED)

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path("" if self.inplace else self.build_lib, PRELOADED))]

    def archive(self, objects: list[str]) -> None:
        """Makes the static library, so that a module links only the rooms of csrc/ that it uses."""
        self.library = str(Path(self.build_temp, "libfastserve.a"))
        if newer_group(objects, self.library):
            Path(self.library).unlink(missing_ok=True)  # ar would keep what is no longer in csrc/
            self.compiler.create_static_lib(objects, "fastserve", output_dir=self.build_temp)

    def compile_source(self, source: str, *flags: str) -> str:
        """The object made from `source`, compiled again if any file it was made from is newer."""
        folder = "" if source.startswith(self.build_temp) else self.build_temp  # "": beside the source
        (target,) = self.compiler.object_filenames([source], output_dir=folder)
        rule = Path(target).with_suffix(".d")
        inputs = rule.read_text().replace("\\\n", " ").split()[1:] if rule.exists() else [source]
        if newer_group([*inputs, "setup.py"], target, missing="newer"):
            options = [*self.cflags, *CFLAGS, *flags, "-MMD"]
            self.compiler.compile([source], folder, include_dirs=["csrc"], extra_postargs=options)
        return target


setup(
    cmdclass={"build_ext": BuildNative},
    ext_modules=[
        Extension(path.removesuffix(".pyx").replace("/", "."), [path])
        for path in sorted(glob("fastserve/_native/*.pyx"))
    ],
)

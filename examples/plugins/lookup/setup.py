"""Builds lookup.c against FastServe's headers, and links it with nothing."""

from setuptools import Extension, setup

from fastserve.extensions import include_dir

setup(
    ext_modules=[
        Extension(
            "fastserve_lookup.lookup",
            ["fastserve_lookup/lookup.c"],
            include_dirs=[include_dir()],
            extra_compile_args=["-std=gnu11", "-Wall", "-Wextra"],
        )
    ]
)

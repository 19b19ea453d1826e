"""The one part of the build that pyproject.toml cannot say: the optional C extension.

Where it cannot be built (no compiler, no headers) the installation goes on without it, and fs3 does
the same in Python: see fs3/compiled.
"""

import sysconfig

from setuptools import Extension, setup

loops = Extension(
    "fs3.compiled._loops",
    sources=["fs3/compiled/module.c", "fs3/compiled/crc32c.c", "fs3/compiled/pieces.c"],
    depends=["fs3/compiled/crc32c.h", "fs3/compiled/pieces.h"],
    extra_compile_args=["-O3", "-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"],
    extra_link_args=["-pthread"],
    py_limited_api=True,
    optional=True,
)
# One build serves every CPython from 3.11 on, but those without a GIL: there, Python's loops do.
has_gil = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    ext_modules=[loops] if has_gil else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if has_gil else {},
)

"""Builds the native parts: one extension module, criu's plugin, the hook stub and a preload shim.

Everything else about the package is in pyproject.toml. The plugin and its companions are plain shared
objects and a program, not Python extensions: they go as package data into externalizer/native, the plugin
in a directory of its own, because criu loads every *.so that lies in its plugin directory.
"""

import os
from glob import glob

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ABI3 = "0x030A0000"  # CPython 3.10
CFLAGS = [
    "-std=gnu11", "-O2", "-g", "-fvisibility=hidden", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2",
    "-Wall", "-Wextra",
]  # fmt: skip
HARDENED = ["-Wl,-z,relro,-z,now"]

# target below externalizer/native, sources, further words for the linker
NATIVE = [
    ("criu-plugins/externalizer.so", sorted(glob("cext/criu_plugin/*.c")), ["-shared", *HARDENED]),
    ("bin/externalize-hook", sorted(glob("cext/hook/*.c")), ["-pie", *HARDENED]),
    ("lib/rlimits-shim.so", sorted(glob("cext/shim/*.c")), ["-shared", *HARDENED]),
]
SCAN = ["cext/scan/_scan.pyx", *sorted(set(glob("cext/scan/*.c")) - {"cext/scan/_scan.c"})]
HEADERS = sorted(glob("cext/*/*.h"))


class BuildNative(build_ext):
    """build_ext that also builds what is native but no Python extension."""

    def run(self):
        super().run()
        base = "." if self.inplace else self.build_lib
        for target, sources, link in NATIVE:
            path = os.path.join(base, "externalizer", "native", target)
            self.mkpath(os.path.dirname(path))
            objects = self.compiler.compile(
                sources,
                output_dir=os.path.join(self.build_temp, "native"),
                extra_postargs=[*CFLAGS, "-fPIC"],
                depends=HEADERS,
            )
            # Not by link_shared_object: that is for Python extensions and adds libpython's path.
            self.spawn([*self.compiler.compiler[:1], *objects, "-o", path, *link])
            os.chmod(path, 0o755)  # noqa: S103 - criu must be able to run and load it

    def get_outputs(self):
        native = os.path.join(self.build_lib, "externalizer", "native")
        return super().get_outputs() + [os.path.join(native, target) for target, _, _ in NATIVE]

    def get_source_files(self):
        """What an sdist must hold."""
        return super().get_source_files() + HEADERS + [name for _, names, _ in NATIVE for name in names]


class AbiWheel(bdist_wheel):
    """One wheel serves CPython 3.10 and all later versions."""

    def finalize_options(self):
        self.py_limited_api = "cp310"
        super().finalize_options()


setup(
    ext_modules=[
        Extension(
            "externalizer.kernel._scan",
            SCAN,
            depends=HEADERS,
            define_macros=[("Py_LIMITED_API", ABI3)],
            extra_compile_args=CFLAGS,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AbiWheel},
)

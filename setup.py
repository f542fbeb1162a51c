"""Builds the native parts: one extension module, criu's plugin, the hook stub and a preload shim.

Everything else about the package is in pyproject.toml. The plugin and its companions are plain shared
objects and a program, not Python extensions: they go as package data into externalizer/native, the plugin
in a directory of its own, because criu loads every *.so that lies in its plugin directory.
"""

import os

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ABI3 = "0x030A0000"  # CPython 3.10
CFLAGS = [
    "-std=gnu11",
    "-O2",
    "-g",
    "-fvisibility=hidden",
    "-fstack-protector-strong",
    "-D_FORTIFY_SOURCE=2",
    "-Wall",
    "-Wextra",
]

# target below externalizer/native, sources, further flags of the link
NATIVE = [
    (
        "criu-plugins/externalizer.so",
        ["cext/criu_plugin/externalizer.c", "cext/criu_plugin/records.c", "cext/criu_plugin/connect.c"],
        ["-shared", "-Wl,-z,relro,-z,now"],
    ),
    ("bin/externalize-hook", ["cext/hook/stub.c"], ["-pie", "-Wl,-z,relro,-z,now"]),
    ("lib/rlimits-shim.so", ["cext/shim/rlimits.c"], ["-shared", "-ldl"]),
]


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
                depends=[],
            )
            # The same flags and compiler as for the extension, but no libpython and no Python suffix.
            self.spawn(
                [*self.compiler.compiler_cxx[:0], *self.compiler.compiler[:1], *objects, "-o", path, *link]
            )
            os.chmod(path, 0o755)  # noqa: S103 - criu must be able to run and load it

    def get_outputs(self):
        base = self.build_lib
        return super().get_outputs() + [
            os.path.join(base, "externalizer", "native", target) for target, _, _ in NATIVE
        ]


class AbiWheel(bdist_wheel):
    """One wheel serves CPython 3.10 and all later versions."""

    def finalize_options(self):
        self.py_limited_api = "cp310"
        super().finalize_options()


setup(
    ext_modules=[
        Extension(
            "externalizer.kernel._scan",
            [
                "cext/scan/_scan.pyx",
                *sorted(
                    f"cext/scan/{name}.c"
                    for name in (
                        "buffer",
                        "fdtable",
                        "map",
                        "mountinfo",
                        "netns",
                        "process",
                        "procfile",
                        "scan",
                        "socks",
                        "tree",
                        "unixdiag",
                    )
                ),
            ],
            depends=["cext/scan/records.h", "cext/scan/scan.h"],
            define_macros=[("Py_LIMITED_API", ABI3)],
            extra_compile_args=CFLAGS,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AbiWheel},
)

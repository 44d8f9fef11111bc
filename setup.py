"""The one part that setup.cfg cannot describe: the U-Net in C. Without a compiler the rest installs and works."""

from setuptools import Extension, setup

NATIVE = "inference/lungs/native"

setup(
    ext_modules=[
        Extension(
            "inference.lungs.native._unet",
            sources=[f"{NATIVE}/unet.c"],
            depends=[f"{NATIVE}/{header}" for header in ("formats.h", "unet_kernel.h", "unet_slice.h")],
            extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"],
            optional=True,
            py_limited_api=True,  # one wheel for Python 3.11 and newer; setup.cfg names it so
        )
    ]
)

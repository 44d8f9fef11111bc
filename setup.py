"""The one part that setup.cfg cannot describe: the U-Net in C. Without a compiler the rest installs and works."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "inference.native._unet",
            sources=["inference/native/unet.c"],
            depends=["inference/native/formats.h", "inference/native/unet_kernel.h", "inference/native/unet_slice.h"],
            extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"],
            optional=True,
        )
    ]
)

"""What a frozen program needs of phirt beyond what its imports show: names are fetched from their modules
when they are first used, and the embedded bundle is data. phirt-kernels is taken along where it is installed:
its library is no part of Python, and nothing imports it by a name that can be seen.
"""

from importlib.util import find_spec

from PyInstaller.utils.hooks import (
    collect_data_files,
    collect_dynamic_libs,
    collect_submodules,
    copy_metadata,
)

hiddenimports = collect_submodules("phirt", filter=lambda name: "__pyinstaller" not in name)
datas = collect_data_files("phirt", includes=["bundles/**", "**/*.pyi"]) + copy_metadata("phirt")
binaries = []
if find_spec("phirt_kernels") is not None:
    hiddenimports.append("phirt_kernels")
    binaries = collect_dynamic_libs("phirt_kernels")

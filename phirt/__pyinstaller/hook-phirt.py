"""What a frozen program needs of phirt beyond what its imports show: names are fetched from their modules
when they are first used, and the embedded bundle is data.
"""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

hiddenimports = collect_submodules("phirt", filter=lambda name: "__pyinstaller" not in name)
datas = collect_data_files("phirt", includes=["bundles/**", "**/*.pyi"]) + copy_metadata("phirt")

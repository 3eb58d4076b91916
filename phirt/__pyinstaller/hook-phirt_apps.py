"""What a frozen command line needs: the commands are files that are looked for when it starts."""

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = collect_submodules("phirt_apps")

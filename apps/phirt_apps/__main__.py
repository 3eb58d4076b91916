"""`python -m phirt_apps`: the command `phirt`, for whom the installed script is not on the path."""

from phirt_apps.cli import main

main()

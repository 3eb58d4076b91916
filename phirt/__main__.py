"""`python -m phirt`: the command line, for whom the script `phirt` is not on the path."""

from phirt_apps.__main__ import main  # noqa: TID251 - only this file, which nothing imports, leads outwards

main()

"""A bundle's graphs made again for other kinds of machines: what `targets` describe as data is done here."""

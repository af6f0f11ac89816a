"""Files on disk: written whole or not at all, and read with checks, in this package's formats and in others'."""

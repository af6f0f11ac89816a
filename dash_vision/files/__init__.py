"""Files on disk: written whole or not at all, read with checks, in this package's own formats and in those of others."""

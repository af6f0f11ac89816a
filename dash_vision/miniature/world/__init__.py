"""The rendered world that the miniature knows."""

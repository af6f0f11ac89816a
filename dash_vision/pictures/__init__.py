"""Picture files and the captions beside them: found, decoded, cut to size."""

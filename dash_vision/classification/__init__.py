"""Fine-tuning vision transformers on the 19 tasks of VTAB-1k (arXiv 1910.04867), honestly selected."""

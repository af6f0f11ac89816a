"""Figures and tables from what runs left on disk. Reads artifacts; knows no trainer."""

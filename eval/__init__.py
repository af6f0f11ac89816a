"""Figures and tables from what runs left on disk. Reads artifacts; knows no trainer."""

from dash_vision.runs.cores import choose_threads

choose_threads()  # before anything here imports torch

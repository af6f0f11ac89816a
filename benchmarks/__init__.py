"""Measurements that the documents quote, one command each: `python -m benchmarks NAME`."""

from dash_vision.runs.cores import choose_threads

choose_threads()  # before anything here imports torch

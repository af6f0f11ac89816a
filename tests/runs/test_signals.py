"""Signals that ask a run to stop."""

import signal

import pytest

from dash_vision.runs.signals import catching_signals


def test_the_first_signal_is_a_request_and_the_second_an_order():
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is to ignore it
    try:
        with catching_signals() as stop:
            assert not stop.pending()
            signal.raise_signal(signal.SIGINT)
            assert stop.pending()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)

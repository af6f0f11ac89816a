"""Strategies of hypothesis for damaged files."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZ = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damaged(draw, data):
    """`data` with bytes changed, removed, put in or cut off; or bytes of another origin."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        # The header is where the structure is: half of the damage goes there.
        at = draw(st.one_of(st.integers(0, len(content)), st.integers(0, min(600, len(content)))))
        kind = draw(st.sampled_from(["flip", "remove", "insert", "cut", "zero"]))
        if kind == "flip" and at < len(content):
            content[at] ^= draw(st.integers(1, 255))
        elif kind == "remove":
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=40))
        elif kind == "zero":
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        elif kind == "cut":
            del content[at:]
    return bytes(content)


def any_file(data):
    return st.one_of(damaged(data), damaged(data), damaged(data), st.binary(max_size=300))

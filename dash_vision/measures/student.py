"""Student's t, for the intervals of a handful of values."""

from __future__ import annotations

# At 97.5% for 1 to 30 degrees of freedom, as tabulated; beyond, 1.96 + 2.46 / n.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def t_quantile(freedom: float) -> float:
    """Half the width of a 95% interval in standard errors. freedom: degrees of freedom, at least 1; a fraction is
    rounded down, which makes the interval wider."""
    whole = int(freedom + 1e-9)
    return _T[whole - 1] if whole <= len(_T) else 1.96 + 2.46 / whole

"""ICC profiles written byte by byte, and the float arithmetic of what they mean."""

from __future__ import annotations

import struct

import numpy as np

# Colorants as Apple's, Adobe's and ICC's own profiles carry them: XYZ under D50, rows red, green, blue.
P3_COLORANTS = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_COLORANTS = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB_COLORANTS = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
# Linear RGB -> XYZ under D65, rows X, Y, Z.
P3_TO_XYZ = ((0.4865709, 0.2656677, 0.1982173), (0.2289746, 0.6917385, 0.0792869), (0.0, 0.0451134, 1.0439444))
ADOBE_TO_XYZ = ((0.5767309, 0.1855540, 0.1881852), (0.2973769, 0.6273491, 0.0752741), (0.0270343, 0.0706872, 0.9911085))
XYZ_TO_SRGB = (
    (3.2404542, -1.5371385, -0.4985314),
    (-0.9692660, 1.8760108, 0.0415560),
    (0.0556434, -0.2040259, 1.0572252),
)


def srgb_light(values):
    """IEC 61966-2-1: values in 0..1 to light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb_values(light):
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def as_srgb(pixels, to_xyz, gamma=None):
    """Levels 0..255 of a space -> levels of sRGB, in float: curve, both matrices, cut to the gamut, curve.

    gamma: None for sRGB's own curve, which Display P3 shares.
    """
    values = np.asarray(pixels, dtype=np.float64) / 255
    light = srgb_light(values) if gamma is None else values**gamma
    return 255 * srgb_values(light @ np.array(to_xyz).T @ np.array(XYZ_TO_SRGB).T)


def grey_of_light(light):
    """Levels of sRGB for light in 0..1."""
    return 255 * srgb_values(np.asarray(light, dtype=np.float64))


def rgb_profile(colorants, gamma=None):
    """A version 2 profile of three colorants and one curve: a gamma, or a table of sRGB's curve."""
    tags = {b"rgb"[i : i + 1] + b"XYZ": _xyz(colorants[i]) for i in range(3)}
    curve = _curve(gamma)
    return icc(b"mntr", b"RGB ", b"XYZ ", tags | {c + b"TRC": curve for c in (b"r", b"g", b"b")})


def grey_profile(gamma):
    return icc(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile():
    """Ink to L* without colour: 100 on paper, a third less for each of cyan, magenta and yellow, none under black."""
    corners = [max(0.0, 1 - (c + m + y) / 3) * (1 - k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    cube = b"".join(bytes([round(255 * light), 128, 128]) for light in corners)
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + cube + 3 * ramp
    return icc(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table})


def icc(device, space, connection, tags):
    """ICC.1:2001-04, 6: header of 128 bytes, table of tags, their contents."""
    tags = {b"wtpt": _xyz((0.9642, 1.0, 0.8249))} | tags
    place, table, contents = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", place + len(contents), len(content))
        contents += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI", place + len(contents), b"", 0x02400000) + device + space + connection
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + contents


def _xyz(values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))


def _curve(gamma):
    if gamma is not None:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    table = np.rint(65535 * srgb_light(np.linspace(0, 1, 1024))).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + table.tobytes()

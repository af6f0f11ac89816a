"""What the numbers of a picture mean as colours: profiles, and their conversion to sRGB.

A profile is, in this order: the code points of ITU-T H.273 that a PNG states (cICP); the ICC profile in the file; the
code points that an AVIF states (nclx); the gamma and the primaries that a PNG states (gAMA, cHRM) where it states no
sRGB; Adobe RGB, where a camera's EXIF says so (DCF 2.0, "R03", or a ColorSpace of 2) without a profile.

Conversion is relative colorimetric with black point compensation: white stays white, black stays black, colours that
sRGB has keep their measured value, and the others go to its edge. The perceptual tables of a printer's profile would
change all colours, by a recipe of the profile's maker; for the profiles of cameras and screens, which have no tables,
both are the same.
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, features

CONVERTED = "converted the colours of {n} to sRGB"
IGNORED = (
    "ignored the colour profile of {n}, which is damaged or does not fit the pixels (look whether colours are right)"
)
HDR = (
    "did not convert the colours of {n}, which are coded for HDR screens (save them as ordinary pictures, or look "
    "whether colours are right)"
)
_NO_CMS = "ignored the colour profile of {n}: pillow was built without LittleCMS, without which none can be applied"

Primaries = tuple[tuple[float, float], ...]
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # ICC's colour space: pillow's mode
# LittleCMS shortens a conversion to a table, which for greys of linear light is off by 10 levels near black.
_PRECISION = {
    "RGB": ImageCms.Flags.NONE,
    "L": ImageCms.Flags.NOOPTIMIZE,
    "CMYK": ImageCms.Flags.HIGHRESPRECALC,
}
_ADOBE_IN_EXIF = 2  # not of the standard, but what some cameras and programs write
_AVIF_HEAD = 1 << 16  # bytes in which an AVIF says what it holds
_CLASSES = ("mntr", "scnr", "prtr", "spac")  # devices and colour spaces; a device link is no profile of a picture
_SAME = 2  # levels of 255: two spellings of sRGB differ by that much where their curves are rounded
# x, y of red, green, blue and white
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290))
_ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.3290))
_ADOBE_GAMMA = 563 / 256
# Of H.273: primaries by their number, and the gamma of transfer functions; None stands for the curve of sRGB, which
# those of television (1, 6, 14, 15) mean in still pictures.
_D65 = (0.3127, 0.3290)
_PRIMARIES: dict[int, Primaries] = {
    1: _SRGB,
    2: _SRGB,  # not specified
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
}
_GAMMAS = {**dict.fromkeys((1, 2, 6, 13, 14, 15)), 4: 2.2, 5: 2.8, 8: 1.0}
_HDR_TRANSFERS = (16, 18)  # PQ and HLG
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])  # the white of ICC's connection space


_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError, ArithmeticError, np.linalg.LinAlgError)


def to_srgb(image: Image.Image, profile: bytes | None, mode: str, remarks: list[str]) -> Image.Image:
    """A picture of any 8-bit mode in sRGB.

    Args:
        image: as pillow decoded it.
        profile: the ICC profile that it follows; None for sRGB.
        mode: "RGB", or "RGBA" to keep its transparency.
        remarks: gets a sentence when colours were converted, or when the profile cannot be used; the pixels are then
            used as they are.
    """
    plain = image.convert(mode)
    if profile is None:
        return plain
    if not features.check("littlecms2"):
        remarks.append(_NO_CMS)
        return plain
    try:
        space, transform = _transform(profile)
        if transform is None:
            return plain
        converted = transform.apply(_device_values(image, plain, space))
    except _ERRORS:
        remarks.append(IGNORED)
        return plain
    if mode == "RGBA":
        converted.putalpha(plain.getchannel("A"))
    remarks.append(CONVERTED)
    return converted


def profile_of(image: Image.Image, points: tuple[int, int] | None, remarks: list[str]) -> bytes | None:
    """The ICC profile that the pixels follow; None for sRGB and where the file says nothing.

    image: as pillow opened it, with its `info`. points: of `code_points`. remarks: gets a sentence for a profile that
    is broken, and for colours that sRGB cannot have.
    """
    if image.mode == "LAB":  # colours by themselves; what such a file carries is no profile of RGB
        return None
    try:
        if points is not None and (image.format == "PNG" or "icc_profile" not in image.info):
            return _profile_of_points(*points, remarks)
        return _profile_of(image)
    except _ERRORS:
        remarks.append(IGNORED)
        return None


def _device_values(image: Image.Image, plain: Image.Image, space: str) -> Image.Image:
    """The numbers that a profile of `space` speaks of. Raises ValueError where the picture has none."""
    grey = image.mode in ("1", "L", "LA", "La")
    if (space == "L" and not grey) or (space == "CMYK") != (image.mode == "CMYK"):
        raise ValueError(f"a profile of {space} in a picture of {image.mode}")
    return image if image.mode == space else plain.convert(space)  # a grey picture may have a profile of RGB


@lru_cache(maxsize=32)  # the pictures of a folder come from few cameras
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile speaks of, and the way from there to sRGB; None where it is sRGB.

    Raises OSError, ValueError or PyCMSError for a profile that cannot be used.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = _SPACES.get(source.profile.xcolor_space.strip())
    if space is None or source.profile.device_class not in _CLASSES:
        raise ValueError("not a profile of pictures")
    transform = ImageCms.ImageCmsTransform(
        source,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        space,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION | _PRECISION[space],
    )
    return space, None if _changes_nothing(transform, space) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, space: str) -> bool:
    """Whether colours over the whole cube come out as they went in. There are dozens of spellings of sRGB, by as many
    programs; what is one already keeps its pixels to the last bit."""
    if space == "CMYK":
        return False
    ramp = np.arange(256, dtype=np.uint8)
    steps = np.array([*range(0, 256, 32), 255], dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    colours = np.concatenate([np.stack([ramp] * 3, axis=1), cube]) if space == "RGB" else ramp[:, None].repeat(3, 1)
    values = colours if space == "RGB" else colours[:, 0]
    result = np.asarray(transform.apply(Image.fromarray(values[None])))[0]
    return int(np.abs(result.astype(int) - colours).max()) <= _SAME


# -- where the profile comes from


def code_points(file: BinaryIO, kind: str) -> tuple[int, int] | None:
    """The numbers of primaries and transfer function in H.273 that a PNG or AVIF file states; None without any.

    The file is read from its beginning, and left where it was.
    """
    place = file.tell()
    file.seek(0)
    try:
        return {"PNG": _png_points, "AVIF": _avif_points}.get(kind, lambda file: None)(file)
    finally:
        file.seek(place)


def _png_points(file: BinaryIO) -> tuple[int, int] | None:
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"cICP" and length == 4:
            primaries, transfer, _, _ = file.read(4)
            return primaries, transfer
        file.seek(length + 4, io.SEEK_CUR)
    return None


def _avif_points(file: BinaryIO) -> tuple[int, int] | None:
    data = file.read(_AVIF_HEAD)
    at = data.find(b"colrnclx")
    if at < 0 or at + 12 > len(data):
        return None
    primaries, transfer = struct.unpack(">HH", data[at + 8 : at + 12])
    return primaries, transfer


def _profile_of_points(primaries: int, transfer: int, remarks: list[str]) -> bytes | None:
    """Raises ValueError for numbers that no still picture has."""
    if transfer in _HDR_TRANSFERS:
        remarks.append(HDR)
        return None
    if primaries not in _PRIMARIES or transfer not in _GAMMAS:
        raise ValueError(f"got code points {primaries}, {transfer}")
    if _PRIMARIES[primaries] is _SRGB and _GAMMAS[transfer] is None:
        return None
    return matrix_profile(_PRIMARIES[primaries], _GAMMAS[transfer])


def _profile_of(image: Image.Image) -> bytes | None:
    """As `profile_of`; raises one of _ERRORS for a broken one."""
    if "icc_profile" in image.info:
        embedded = image.info["icc_profile"]
        if embedded is None:  # pillow's answer to one that is incomplete
            raise ValueError("an incomplete profile")
        return bytes(embedded) or None
    if image.format == "PNG" and "srgb" not in image.info:
        return _profile_of_png(image.info.get("gamma"), image.info.get("chromaticity"))
    return matrix_profile(_ADOBE_RGB, _ADOBE_GAMMA) if _is_camera_adobe_rgb(image) else None


def _profile_of_png(gamma: float | None, corners: tuple[float, ...] | None) -> bytes | None:
    """gamma: of the file, 0.45455 for numbers that are the light's power of 1 / 2.2. corners: x and y of white, red,
    green and blue.

    Browsers show a picture by these chunks, so this is what its maker saw. 0.45455 is what the PNG standard has sRGB
    files say, and stands for the curve of sRGB; so does a missing gamma.
    """
    if gamma is None and corners is None:
        return None
    primaries: Primaries = _SRGB
    if corners is not None:
        white, *others = zip(corners[::2], corners[1::2], strict=True)
        primaries = (*others, white)
    like_srgb = gamma is None or abs(2.2 * gamma - 1) <= 0.05  # as libpng does
    return matrix_profile(primaries, None if like_srgb or gamma is None else 1 / gamma)


def _is_camera_adobe_rgb(image: Image.Image) -> bool:
    try:
        exif = image.getexif() if image.info.get("exif") else None
        interop = exif.get_ifd(ExifTags.IFD.Interop) if exif else {}
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace) if exif else None
    except Exception:  # broken EXIF breaks its parser in many ways; its orientation is where that is said
        return False
    return space == _ADOBE_IN_EXIF or str(interop.get(1, "")).rstrip("\0 ") == "R03"


def matrix_profile(primaries: Primaries, gamma: float | None) -> bytes:
    """An ICC profile (version 4.3, parametric curves) of an RGB space.

    Args:
        primaries: CIE x, y of red, green, blue and white.
        gamma: light = value ** gamma; None for the curve of sRGB (IEC 61966-2-1).

    Raises:
        ValueError, ArithmeticError or LinAlgError: primaries or a gamma that no space can have.
    """
    if gamma is not None and not 0.1 <= gamma <= 10:
        raise ValueError(f"got gamma {gamma}")
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    if not np.isfinite(columns).all():
        raise ValueError("got a primary without light")
    white = columns[:, 3]
    space = columns[:, :3] * np.linalg.solve(columns[:, :3], white)  # each primary as bright as white needs it
    cone = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    space = np.linalg.solve(_BRADFORD, cone @ _BRADFORD) @ space
    if np.abs(space).max() > 30_000:  # beyond the numbers of a profile
        raise ValueError("got primaries in one line")
    curve = _para(0, gamma) if gamma else _para(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {b"wtpt": _xyz(_D50)} | {b"rgb"[i : i + 1] + b"XYZ": _xyz(space[:, i]) for i in range(3)}
    return _icc(tags | {c + b"TRC": curve for c in (b"r", b"g", b"b")})


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _para(kind: int, *parameters: float) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(map(_fixed, parameters))


def _fixed(value: float) -> bytes:
    """ICC's s15Fixed16Number."""
    return struct.pack(">i", round(float(value) * 65536))


def _icc(tags: dict[bytes, bytes]) -> bytes:
    """A monitor's profile of these tags: header, table, contents (ICC.1:2010, 7)."""
    table, contents = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(contents), len(content))
        contents += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(contents), b"", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + b"".join(map(_fixed, _D50)) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + contents

"""What pictures look like, in numbers. Pictures in −1…1, [..., C, H, W]; a number for each, [...].

ink         mean intensity, 0…1
slant       how far a stroke leans to the right for each row that it rises: minus the shear of the intensity's second moments
symmetry    correlation of a picture with its mirror image, left to right
red, green, blue, saturation  means over the picture, 0…1; saturation as in HSV
"""

import numpy as np


def numbers(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """What can be said of pictures of one channel, or of three. Raises: ValueError of others."""
    intensity = (pictures.astype(np.float64) + 1) / 2
    match pictures.shape[-3]:
        case 1:
            grey = intensity[..., 0, :, :]
            return {"ink": grey.mean((-2, -1)), "slant": slant(grey), "symmetry": symmetry(grey)}
        case 3:
            means = np.moveaxis(intensity.mean((-2, -1)), -1, 0)
            return {**dict(zip(("red", "green", "blue"), means, strict=True)), "saturation": saturation(intensity)}
        case other:
            raise ValueError(f"pictures have {other} channels: must be 1 or 3")


def slant(intensity: np.ndarray) -> np.ndarray:
    """−μ_xy / μ_yy of intensity [..., H, W], y downwards; 0 where there is none, or all of it is in one row.

    >>> slant(np.eye(4)[::-1])
    np.float64(1.0)
    """
    height, width = intensity.shape[-2:]
    y, x = np.mgrid[:height, :width]
    mass = intensity.sum((-2, -1))
    share = _ratio(intensity, mass[..., None, None])
    dx, dy = (axis - (share * axis).sum((-2, -1), keepdims=True) for axis in (x, y))
    return -_ratio((share * dx * dy).sum((-2, -1)), (share * dy * dy).sum((-2, -1)))


def symmetry(intensity: np.ndarray) -> np.ndarray:
    """Pearson correlation of pixels [..., H, W] with those of the mirror image; 1 where all are alike."""
    centred = intensity - intensity.mean((-2, -1), keepdims=True)
    variance = np.square(centred).mean((-2, -1))
    return np.where(variance > 1e-12, _ratio((centred * centred[..., ::-1]).mean((-2, -1)), variance), 1.0)


def saturation(intensity: np.ndarray) -> np.ndarray:
    """Mean over pixels of (max − min) / max of red, green and blue [..., 3, H, W]; 0 of black."""
    most, least = intensity.max(-3), intensity.min(-3)
    return _ratio(most - least, most).mean((-2, -1))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is nothing."""
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.zeros(a.shape), where=np.abs(b) > 1e-12)[()]

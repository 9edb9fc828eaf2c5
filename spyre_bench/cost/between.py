"""Between measured sizes: what a closed form says, times the ratio of measured to fitted there."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from scipy.interpolate import BSpline, LinearNDInterpolator, make_interp_spline
from scipy.spatial import QhullError


class Ratios:
    """Ratios of measured to fitted at some sizes, linear in the sizes' logarithms between the
    nearest of them (Delaunay), so that the closed form carries the growth and the measurements its
    error."""

    def __init__(self, sizes: np.ndarray, ratios: np.ndarray):
        """`sizes` [measured, dimensions], above 0, and `ratios` [measured, quantities]."""
        self._points = np.log2(sizes)
        self._ratios = ratios

    def at(self, sizes: np.ndarray) -> tuple[np.ndarray, bool]:
        """The ratios [quantities] at sizes [dimensions]; outside of what was measured, which the
        second value says, they are those of the nearest."""
        point = np.log2(sizes)
        varies = np.ptp(self._points, axis=0) > 0
        found = np.full(self._ratios.shape[1], np.nan)
        if self._between is not None and np.array_equal(point[~varies], self._points[0, ~varies]):
            found = self._between(point[varies])[0]
        outside = bool(np.isnan(found).any())
        return (self._ratios[self.nearest(sizes)] if outside else found), outside

    def nearest(self, sizes: np.ndarray) -> int:
        """The index of the measured sizes that are nearest."""
        return int(np.argmin(((self._points - np.log2(sizes)) ** 2).sum(axis=1)))

    @cached_property
    def _between(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Over the dimensions that vary; None where they span no volume."""
        varied = self._points[:, np.ptp(self._points, axis=0) > 0]
        try:
            if varied.shape[1] == 1:
                order = np.argsort(varied[:, 0])
                line = make_interp_spline(varied[order, 0], self._ratios[order], k=1)
                return BSpline(line.t, line.c, line.k, extrapolate=False)
            return LinearNDInterpolator(varied, self._ratios) if varied.size else None
        except (QhullError, ValueError):  # all on a line or a plane
            return None

"""The quick arithmetic on cells gives the same bits as the library's general functions."""

import numpy as np
import pytest
from scipy import ndimage

from inference.anatomy.cells import row_sums
from inference.anatomy.parts import sizes_of
from inference.anatomy.squares import grown, shrunk


@pytest.mark.parametrize("shape", [(3, 40, 50), (2, 3, 4), (1, 1, 9)])
@pytest.mark.parametrize("reach", [1, 2, 5, 20])
def test_a_mask_grows_and_shrinks_as_by_filters(shape, reach):
    mask = np.random.default_rng(reach).random(shape) < 0.3
    size = (1, 2 * reach + 1, 2 * reach + 1)
    assert np.array_equal(grown(mask, reach), ndimage.maximum_filter(mask, size))
    assert np.array_equal(shrunk(mask, reach), ndimage.minimum_filter(mask, size))


@pytest.mark.parametrize("factor", range(1, 12))
def test_rows_are_added_in_the_order_of_reduceat(factor):
    plane = np.random.default_rng(factor).normal(0, 1000, (50, 31)).astype(np.float32)
    assert np.array_equal(row_sums(plane, factor), np.add.reduceat(plane, np.arange(0, 50, factor), axis=0))
    columns = np.add.reduceat(plane, np.arange(0, 31, factor), axis=1)
    assert np.array_equal(row_sums(plane.T, factor).T, columns)


def test_parts_are_counted_without_the_background():
    labels = np.random.default_rng(1).integers(0, 9, (4, 5, 6)).astype(np.uint32)
    assert sizes_of(labels, 10).tolist() == [0, *np.bincount(labels.ravel(), minlength=11)[1:]]

"""The quick arithmetic on cells gives the same bits as the library's general functions."""

import numpy as np
import pytest
from scipy import ndimage

from inference.anatomy.cells import Cells, addable, row_sums
from inference.anatomy.parts import sizes_of
from inference.anatomy.squares import enclosed, grown, opened, shrunk, touching


@pytest.mark.parametrize("shape", [(3, 40, 50), (2, 3, 4), (1, 1, 9)])
@pytest.mark.parametrize("reach", [1, 2, 5, 20])
def test_a_mask_grows_and_shrinks_as_by_filters(shape, reach):
    mask = np.random.default_rng(reach).random(shape) < 0.3
    size = (1, 2 * reach + 1, 2 * reach + 1)
    assert np.array_equal(grown(mask, reach), ndimage.maximum_filter(mask, size))
    assert np.array_equal(shrunk(mask, reach), ndimage.minimum_filter(mask, size))


@pytest.mark.parametrize("shape", [(3, 40, 50), (2, 3, 4), (1, 1, 9)])
@pytest.mark.parametrize("reach", [(0, 0), (1, 1), (2, 0), (1, 3), (6, 6)])
def test_a_mask_opens_as_by_filters_that_see_nothing_beyond_the_sides(shape, reach):
    mask = np.random.default_rng(1).random(shape) < 0.9
    size = (1, 2 * reach[0] + 1, 2 * reach[1] + 1)
    small = ndimage.minimum_filter(mask, size, mode="constant")
    assert np.array_equal(opened(mask, reach), ndimage.maximum_filter(small, size, mode="constant"))


@pytest.mark.parametrize("shape", [(3, 40, 50), (2, 3, 4), (1, 1, 9)])
def test_a_mask_with_its_neighbours_is_dilated_by_a_cross(shape):
    mask = np.random.default_rng(2).random(shape) < 0.2
    cross = ndimage.generate_binary_structure(2, 1)[None]
    assert np.array_equal(touching(mask), ndimage.binary_dilation(mask, cross))


@pytest.mark.parametrize("rows", [1, 2, 37, 64])
def test_enclosed_cells_lie_between_the_first_and_the_last_of_their_column(rows):
    mask = np.random.default_rng(rows).random((3, rows, 20)) < 0.1
    before = np.logical_or.accumulate(mask, axis=1)
    behind = np.logical_or.accumulate(mask[:, ::-1], axis=1)[:, ::-1]
    assert np.array_equal(enclosed(mask), before & behind)


@pytest.mark.parametrize("count", [1, 21, 22, 300])
@pytest.mark.parametrize("value", [-1500, 1500])
def test_whole_numbers_become_a_type_that_holds_their_sum(count, value):
    voxels = addable(np.full((count, 2), value, np.int16), 1500, count)
    assert np.add.reduce(voxels, axis=0, dtype=voxels.dtype).tolist() == [count * value] * 2


@pytest.mark.parametrize("count", [1, 127, 128, 40000])
def test_a_mask_becomes_a_type_that_holds_its_count(count):
    voxels = addable(np.ones((count, 2), bool), 1, count)
    assert np.add.reduce(voxels, axis=0, dtype=voxels.dtype).tolist() == [count] * 2


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 3, 3), (3, 1, 2)])
def test_a_mask_of_cells_covers_the_voxels_of_its_cells(factors):
    shape = (7, 10, 11)
    places = np.indices(shape) // np.reshape(factors, (3, 1, 1, 1))
    mask = np.random.default_rng(3).random(places.reshape(3, -1).max(axis=1) + 1) < 0.3
    cells = Cells(np.zeros(mask.shape, np.float32), (2.0, 2.0, 2.0), factors, shape)
    assert np.array_equal(cells.to_voxels(mask), mask[tuple(places)])


@pytest.mark.parametrize("factor", range(1, 12))
def test_rows_are_added_in_the_order_of_reduceat(factor):
    plane = np.random.default_rng(factor).normal(0, 1000, (50, 31)).astype(np.float32)
    assert np.array_equal(row_sums(plane, factor), np.add.reduceat(plane, np.arange(0, 50, factor), axis=0))
    columns = np.add.reduceat(plane, np.arange(0, 31, factor), axis=1)
    assert np.array_equal(row_sums(plane.T, factor).T, columns)


@pytest.mark.parametrize("factor", range(1, 12))
def test_rows_of_whole_numbers_keep_their_type(factor):
    plane = np.random.default_rng(factor).integers(-1000, 1000, (50, 31)).astype(np.int16)
    sums = row_sums(plane, factor)
    assert sums.dtype == np.int16
    assert np.array_equal(sums, np.add.reduceat(plane, np.arange(0, 50, factor), axis=0))


def test_parts_are_counted_without_the_background():
    labels = np.random.default_rng(1).integers(0, 9, (4, 5, 6)).astype(np.uint32)
    assert sizes_of(labels, 10).tolist() == [0, *np.bincount(labels.ravel(), minlength=11)[1:]]

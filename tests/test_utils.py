"""The helpers that several packages share."""

from __future__ import annotations

import numpy as np
import pytest

from mmitpn.utils import check_int, evenly_spaced, id2rgb, is_int, mask_to_box, rgb2id


def test_integers():
    assert is_int(0)
    assert not is_int(True)
    assert not is_int(1.0)
    check_int('rounds', 1)
    check_int('rounds', 0, least=0)
    for wrong in (0, True, 2.0, '2', None):
        with pytest.raises(ValueError, match=rf'rounds is {wrong!r}; give an integer of at least 1'):
            check_int('rounds', wrong)


def test_evenly_spaced_items():
    assert evenly_spaced('abcdefgh', 4) == ['a', 'c', 'e', 'g']
    assert evenly_spaced(range(10), 3) == [0, 3, 6]
    assert evenly_spaced([1, 2], 5) == evenly_spaced([1, 2], None) == [1, 2]
    assert evenly_spaced([1, 2], 0) == evenly_spaced([], 3) == []


def test_ids_of_colored_pixels():
    pixels = np.array([[[1, 2, 3], [255, 255, 255]]], dtype=np.uint8)
    assert rgb2id(pixels).tolist() == [[1 + 512 + 3 * 65536, 2**24 - 1]]
    np.testing.assert_array_equal(id2rgb(rgb2id(pixels)), pixels)
    assert id2rgb(rgb2id(pixels)).dtype == np.uint8


def test_box_of_a_mask():
    mask = np.zeros((6, 8), dtype=bool)
    mask[2, 3] = mask[4, 6] = True
    assert mask_to_box(mask) == [3, 2, 4, 3]
    assert mask_to_box(np.ones((2, 5), dtype=bool)) == [0, 0, 5, 2]

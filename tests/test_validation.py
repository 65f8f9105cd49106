from __future__ import annotations

import pytest

from mmitpn.utils import check_int


@pytest.mark.parametrize('value', [0, -1, 1.0, True, '2', None])
def test_anything_but_an_integer_of_at_least_one_raises(value):
    with pytest.raises(ValueError, match=rf'^num_queries is {value!r}; give an integer of at least 1$'):
        check_int('num_queries', value)


def test_the_least_value_is_allowed():
    check_int('num_stuff_classes', 0, least=0)
    with pytest.raises(ValueError, match='is 2; give an integer of at least 3'):
        check_int('num_levels', 2, least=3)

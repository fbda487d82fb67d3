"""Device memory that tensors of different times share."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from s4d_runtime.lidar.arena import Buffer, assign_offsets


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_memory_is_shared_only_by_tensors_of_different_times(lives):
    buffers = [Buffer(str(n), size, min(a, b), max(a, b)) for n, (size, a, b) in enumerate(lives)]
    total = assign_offsets(buffers)
    for i, one in enumerate(buffers):
        assert one.offset % 256 == 0 and one.offset + one.size <= total
        for other in buffers[:i]:
            apart = one.last < other.first or other.last < one.first
            below = one.offset + one.size <= other.offset
            assert apart or below or other.offset + other.size <= one.offset
    assert total <= assign_offsets(buffers, share=False)

"""Single rows on a CPU in one compiled call; needs Numba (`pip install 'regaze[cpu]'`)."""

"""Compiled solvers of tanh flows: fixed steps on a CPU (numba) and a GPU (triton), dopri5 on a CPU."""

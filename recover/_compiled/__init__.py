"""How kernels are compiled, kept and vectorized."""

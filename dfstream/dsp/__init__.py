"""The signal processing of libDF as numba kernels and thin stateful classes."""

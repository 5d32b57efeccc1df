"""Runs the CUDA kernels on the CPU: the same ``.cu`` files, built by g++, their threads played by fibers."""

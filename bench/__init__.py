"""Benchmarks of fastconv beside other libraries; see README.md. Not installed: run from the repository's root."""

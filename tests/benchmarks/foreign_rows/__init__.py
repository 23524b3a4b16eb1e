"""What `tests.benchmarks.foreign` merges, one file per group of formats, found by discovery.

A file has FORMATS, which gives names to functions from weights (N, K) to a
`recover.containers.huggingface.formats.Matrix`, and SETS, tuples of such names (of any file) and of
GGUF types.
"""

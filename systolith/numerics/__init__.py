"""Bit-exact formats and functions: the numerics contract as scalar definitions and a vectorised NumPy layer.

`fp32`, `formats`, `blocks`, `functions`, `philox`, `choose` are the definition, plain Python on single values;
`constants` and `trig` make the tables of a program; `vector` does whole arrays, equal to the definition bit for bit.
docs/numerics.md is the contract in words.
"""

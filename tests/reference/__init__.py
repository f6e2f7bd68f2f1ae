"""Independent references for the tests: written from the numerics contract alone, they import nothing of the package.

`contract` computes the bits of the contract in NumPy; `torch_emulation` the same quantisation in PyTorch, not bit
for bit; `make_model` writes small random checkpoints. A rule changed here is a rule changed twice.
"""

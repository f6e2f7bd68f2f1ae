"""The chip in Amaranth, driven by `Chip`, and what runs its Verilog. The one package that imports Amaranth."""

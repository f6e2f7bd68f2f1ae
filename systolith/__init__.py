"""Systolith: an open LLM-inference chip, from a Hugging Face checkpoint to tokens and from one record to Verilog."""

__version__ = "0.1.0"

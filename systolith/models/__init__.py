"""Models: a Hugging Face directory in, a graph of tensor operations, its tensors and its tokenizer out."""

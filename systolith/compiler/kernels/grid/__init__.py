"""The body of a step on the grid of slices (`compiler.grid`)."""

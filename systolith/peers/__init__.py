"""Other people's chips: what can be bought or was published, what it was measured at, and a model held to that."""

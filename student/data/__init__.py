"""Which rows a step reads, and the batch made of them."""

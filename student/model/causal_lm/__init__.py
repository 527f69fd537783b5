"""Students that are causal language models of transformers: any of them, or layers of the teacher's own kind."""

"""What a model makes of its LM head's logits before it returns them."""

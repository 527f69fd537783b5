"""From logits to what is kept of them, and back to the teacher at a temperature: pure functions of tensors."""

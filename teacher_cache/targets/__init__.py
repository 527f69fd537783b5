"""From logits to the targets kept of them, and back to the teacher at a temperature: pure functions on tensors."""

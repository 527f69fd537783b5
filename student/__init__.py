"""The student: an xLSTM between the teacher's embedding and LM head, trained from a cache by δ-distillation."""

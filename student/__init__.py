"""The student: trained from a cache by δ-distillation, an xLSTM around the teacher's embedding and LM head."""

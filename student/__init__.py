"""The student: trained from a cache by δ-distillation, an xLSTM around the teacher's embedding and LM head.

Importing it makes transformers' `AutoConfig` and `AutoModelForCausalLM` know exported students.
"""

from student.inference.registration import register_with_transformers

register_with_transformers()

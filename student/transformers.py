"""Makes transformers load exported students: after `import student.transformers`, its `Auto` classes know them.

`AutoConfig`, `AutoModelForCausalLM` and all that goes by them, such as `pipeline`, then take an export's folder.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from student.inference.hf import STUDENTS

for _student in STUDENTS:
    AutoConfig.register(_student.config_class.model_type, _student.config_class, exist_ok=True)
    AutoModelForCausalLM.register(_student.config_class, _student, exist_ok=True)

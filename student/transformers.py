"""Makes transformers load exported students: after `import student.transformers`, its `Auto` classes know them.

`AutoConfig`, `AutoModelForCausalLM` and all that goes by them, such as `pipeline`, then take an export's folder.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from student.inference.hf import DistilXLSTMForCausalLM
from student.inference.hf_config import DistilXLSTMConfig

AutoConfig.register(DistilXLSTMConfig.model_type, DistilXLSTMConfig, exist_ok=True)
AutoModelForCausalLM.register(DistilXLSTMConfig, DistilXLSTMForCausalLM, exist_ok=True)

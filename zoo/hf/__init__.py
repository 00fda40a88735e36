"""Wrap any model of Zoo as a transformers model.

Importing the package registers its classes with transformers' Auto classes, without custom code:

    import zoo.hf
    model = AutoModelForCausalLM.from_config(zoo.hf.ZooConfig.of("llama-tiny"))
"""

from __future__ import annotations

from zoo.run.fp8 import quieten_torchao

with quieten_torchao():  # which transformers imports
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    from zoo.hf.config import ZooConfig as ZooConfig
    from zoo.hf.generation_cache import ZooCache as ZooCache
    from zoo.hf.task_models import ZooForCausalLM as ZooForCausalLM
    from zoo.hf.task_models import ZooForMaskedLM as ZooForMaskedLM
    from zoo.hf.task_models import ZooForSeq2SeqLM as ZooForSeq2SeqLM
    from zoo.hf.task_models import ZooForSequenceClassification as ZooForSequenceClassification
    from zoo.hf.task_models import ZooForTokenClassification as ZooForTokenClassification
    from zoo.hf.task_models import ZooModel as ZooModel
    from zoo.hf.task_models import load as load
    from zoo.hf.task_models import wrap as wrap

AutoConfig.register("zoo", ZooConfig)
for auto, model in {
    AutoModel: ZooModel,
    AutoModelForCausalLM: ZooForCausalLM,
    AutoModelForMaskedLM: ZooForMaskedLM,
    AutoModelForSeq2SeqLM: ZooForSeq2SeqLM,
    AutoModelForSequenceClassification: ZooForSequenceClassification,
    AutoModelForTokenClassification: ZooForTokenClassification,
}.items():
    auto.register(ZooConfig, model)

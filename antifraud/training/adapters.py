"""LoRA adapters put on a model, whatever a notebook did with it before."""

import sys

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import set_seed

from data.files import DataError

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_adapters(model, config: LoraConfig, seed: int) -> PeftModel:
    """`model` with new adapters in place of an earlier training's, or as it is where it came with its own.

    Raises:
        DataError: nothing of it would be trained.
    """
    if isinstance(model, PeftModel):
        print("the model has an adapter, which is trained further: the given LoRA settings are not used; load_model "
              "gives one without", file=sys.stderr)
    else:
        _take_off_adapters(model)
        set_seed(seed)  # Trainer does so too late for the adapters' first values
        linear = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        if set(config.target_modules or ()) == set(TARGET_MODULES) and not set(TARGET_MODULES) <= linear:
            config.target_modules = "all-linear"  # Phi-3 and GPT-2 name their projections otherwise
        model = get_peft_model(model, config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise DataError("the model's adapter is frozen, so that nothing would be trained; load the base with load_model"
                        " and the adapter with PeftModel.from_pretrained(model, folder, is_trainable=True)")
    return model


def _take_off_adapters(model) -> None:
    """Those that `get_peft_model` left in a base model: new ones on fewer layers would be trained beside them."""
    layers = [(name, layer) for name, layer in model.named_modules()
              if isinstance(layer, (BaseTunerLayer, ModulesToSaveWrapper))]
    for name, layer in layers:
        model.set_submodule(name, layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else
                            layer.original_module)
    if layers:
        del model.peft_config
        print("the adapters of an earlier build_trainer were taken off the model", file=sys.stderr)

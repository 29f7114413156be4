"""QLoRA fine-tuning that catches fraud in Chinese dialogues: the library behind `trainer.py` and `evaluate.py`."""

import logging
import warnings

# What libraries say to each other's authors, on every command of a user who can do nothing about it.
warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU", UserWarning)
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in record.getMessage())

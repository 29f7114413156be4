"""QLoRA fine-tuning that catches fraud in Chinese dialogues: the library behind `trainer.py` and `evaluate.py`."""

"""The article's notebook runs on these helpers with only its paths changed, in a fresh kernel in another folder."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from helpers import ARGUMENTS, pickled_classes

ROOT = Path(__file__).parents[2]

# What the article does, in its order. Only sizes (steps, batches) are our own: the machine has no GPU.
CELLS = {
    "run trainer": "%run {trainer}",
    "paths": """
traindata_path = {train!r}
evaldata_path = {eval!r}
model_path = {base!r}
output_path = {output!r}
""",
    "device": """
os.environ["CUDA_VISIBLE_DEVICES"] = "0"
device = 'cuda'
""",
    "own load_model": """
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

def load_model(model_path, device='cuda'):
    tokenizer = AutoTokenizer.from_pretrained(model_path, use_fast=False, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(
        model_path, torch_dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16,
                                               bnb_4bit_use_double_quant=False, bnb_4bit_quant_type='nf4'))
    return model, tokenizer
""",
    "load": "model, tokenizer = load_model(model_path, device)\nmodel",
    "data": "train_dataset, eval_dataset = load_dataset(traindata_path, evaldata_path, tokenizer)",
    "arguments": """
train_args = build_train_arguments(output_path)
train_args.optim = "paged_adamw_32bit"
train_args.per_device_train_batch_size = 8
train_args.learning_rate = 1e-2
train_args.max_steps = 32
train_args.eval_steps = train_args.save_steps = 16
""",
    "lora": """
lora_config = build_loraconfig()
lora_config.lora_dropout = 0.1
lora_config.r = 8
lora_config.lora_alpha = 16
""",
    "build": """
trainer = build_trainer(model, tokenizer, train_args, lora_config, train_dataset, eval_dataset)
trainer.model.print_trainable_parameters()
""",
    "train": "trainer.train()",
    "run evaluate": "%run {evaluate}",
    "checkpoint": "checkpoint_path = trainer.state.best_model_checkpoint",
    "evaluate": "report = evaluate(model_path, checkpoint_path, evaldata_path, device, batch=True, debug=True)",
    "evaluate with model": """
same = evaluate_with_model(trainer.model, tokenizer, evaldata_path, device, batch=True, debug=True)
""",
    "ours: what the test asks": """
optimizer = trainer.optimizer
while hasattr(optimizer, "optimizer"):
    optimizer = optimizer.optimizer
print(type(model.model.layers[0].mlp.up_proj.base_layer).__name__, type(optimizer).__name__, optimizer.is_paged,
      trainer.state.global_step, trainer.model.peft_config["default"].r,
      report["provenance"]["checkpoint"]["name"] in checkpoint_path)
""",
    "ours: probabilities": "print(predict(trainer.model, tokenizer, ['王经理: 请把短信里的号码念给我。'])[0] > 0.5)",
}


@pytest.fixture(scope="module")
def outputs(base, train_file, eval_file, tmp_path_factory) -> dict:
    """Cell -> what it printed (``stdout``, ``stderr``); a cell that raises fails here."""
    elsewhere = tmp_path_factory.mktemp("article")
    paths = {"train": train_file, "eval": eval_file, "base": base, "output": str(elsewhere / "run"),
             "trainer": ROOT / "trainer.py", "evaluate": ROOT / "evaluate.py"}
    sources = [source.strip().format(**paths) if name == "paths" or name.startswith("run ") else source.strip()
               for name, source in CELLS.items()]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("PYTHONPATH", raising=False)  # `%run` finds the library by itself
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                                resources={"metadata": {"path": str(elsewhere)}}).execute()
    printed = {"classes": pickled_classes(elsewhere / "run" / "checkpoint-32" / "training_args.bin")}
    for name, cell in zip(CELLS, notebook.cells, strict=True):
        streams = [output for output in cell.outputs if output.output_type == "stream"]
        printed[name] = {kind: "".join(stream.text for stream in streams if stream.name == kind)
                         for kind in ("stdout", "stderr")}
    return printed


def test_running_the_helpers_prints_nothing_and_parses_no_command_line(outputs):
    for name in ("run trainer", "run evaluate"):
        assert outputs[name]["stdout"] == "" and "usage:" not in outputs[name]["stderr"]


def test_the_notebooks_own_model_is_trained_with_the_fields_assigned(outputs):
    assert outputs["ours: what the test asks"]["stdout"].split() == ["Linear4bit", "AdamW", "True", "32", "8", "True"]
    # r 8 times inputs plus outputs of q, k, v, o, gate, up, down, in two layers
    parameters = 8 * (128 + 96 + 96 + 128 + 192 + 192 + 192) * 2
    assert outputs["build"]["stdout"].startswith(f"trainable params: {parameters:,} ")


def test_what_a_kernel_pickles_is_of_the_library_and_it_predicts(outputs):
    assert ARGUMENTS in outputs["classes"] and not [name for name in outputs["classes"] if "__main__" in name]
    assert outputs["ours: probabilities"]["stdout"] == "True\n"


def test_cuda_without_a_gpu_falls_back_to_the_cpu_with_a_notice(outputs):
    assert re.search("CUDA.* CPU\n", outputs["evaluate"]["stderr"])


def test_both_evaluations_print_the_articles_lines_with_the_same_counts(outputs):
    counts = []
    for name in ("evaluate", "evaluate with model"):
        first, second = outputs[name]["stdout"].splitlines()[:2]
        tn, fp, fn, tp = map(int, re.fullmatch(r"tn：(\d+), fp:(\d+), fn:(\d+), tp:(\d+)", first).groups())
        assert second == f"precision: {tp / (tp + fp)}, recall: {tp / (tp + fn)}, accuracy: {(tp + tn) / 20}"
        counts.append((tn, fp, fn, tp))
    assert counts[0] == counts[1] == (10, 0, 0, 10)  # the two sentences of the corpus are told apart

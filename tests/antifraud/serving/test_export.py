"""Export: the merged folder answers as the checkpoint did, its card says only what was measured, GGUF holds it all."""

import dataclasses
import json
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_records
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from antifraud.checkpoint import Decision, Lineage, find_checkpoint, read_checkpoint
from antifraud.serving import export as export_module
from antifraud.serving.export import compare, export, merge, to_dtype
from antifraud.serving.gguf_writer import require_gguf_support
from antifraud.serving.model_card import FIGURES, precision_at, read_report, render_card
from data.files import DataError, complete_or_absent, refuse_existing
from data.prompt import PromptEncoder, Task
from evaluate import evaluate_with_model, load_model, predict

DIALOGUES = [record["input"] for record in make_records(12, first_case=700)]
TASK, DECISION = {"instruction": "这段对话是诈骗吗？\n", "max_length": 400}, {"threshold": 0.25}  # not the defaults


def score_model(model, tokenizer, task: Task, dialogues) -> np.ndarray:
    """What a model loaded by whatever means answers to a task's question."""
    kept, model.lineage = getattr(model, "lineage", None), Lineage(task=task)
    try:
        return predict(model.eval(), tokenizer, dialogues)
    finally:
        model.lineage = kept


def log_odds(scores: np.ndarray) -> np.ndarray:
    return np.log(scores) - np.log1p(-scores)


@pytest.fixture(scope="module")
def checkpoint(run_folder, tmp_path_factory) -> str:
    """A trained checkpoint whose task is not the default one."""
    folder = Path(shutil.copytree(find_checkpoint(run_folder), tmp_path_factory.mktemp("export") / "checkpoint-80"))
    saved = json.loads((folder / "fraud_task.json").read_text())
    saved["task"].update(TASK)
    saved["decision"].update(DECISION)
    (folder / "fraud_task.json").write_text(json.dumps(saved))
    return str(folder)


@pytest.fixture(scope="module")
def loaded(base, checkpoint):
    return load_model(base, checkpoint, "cpu")


@pytest.fixture(scope="module")
def report_file(loaded, eval_file, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.json"
    path.write_text(json.dumps(evaluate_with_model(*loaded, eval_file, "cpu", progress=False)))
    return str(path)


@pytest.fixture(scope="module")
def exported(base, checkpoint, report_file, eval_file, tmp_path_factory):
    """(folder, facts) of an export with everything but GGUF; treat it as read-only."""
    folder = tmp_path_factory.mktemp("exported") / "merged"
    facts = export(base, checkpoint, folder, report_path=report_file, data_path=eval_file, rows=6)
    return folder, facts


# ------------------------------------------------------------------------------------------------- the weights


def test_merging_adds_the_scaled_product_of_the_adapter_to_the_base_weight(base, checkpoint):
    model, _ = merge(base, checkpoint, "original")
    adapter = load_file(Path(checkpoint) / "adapter_model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = load_file(Path(base) / "model.safetensors")[f"{name}.weight"] + 32 / 16 * (b @ a)
    torch.testing.assert_close(model.get_submodule(name).weight.data, expected)
    assert not torch.equal(model.get_submodule(name).weight, AutoModelForCausalLM.from_pretrained(base)
                           .get_submodule(name).weight)


def test_merged_into_the_dequantised_weights_it_answers_as_trained_and_into_the_original_ones_nearly(
        base, checkpoint, loaded):
    task = loaded[0].lineage.task
    trained = log_odds(score_model(*loaded, task, DIALOGUES))
    away = {into: np.abs(log_odds(score_model(*merge(base, checkpoint, into), task, DIALOGUES)) - trained).max()
            for into in ("dequantized", "original")}
    assert away["dequantized"] < 1e-3 < 1e-2 < away["original"] < 10


def test_plain_peft_in_three_lines_scores_as_load_model_does(base, checkpoint):
    model = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, checkpoint)
    model = model.merge_and_unload()

    ours, tokenizer = load_model(base, checkpoint, "cpu", quantization="none")
    task = ours.lineage.task
    np.testing.assert_allclose(score_model(model.eval(), tokenizer, task, DIALOGUES),
                               score_model(ours, tokenizer, task, DIALOGUES), atol=1e-5)


def test_weights_that_a_type_cannot_hold_are_refused(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.norm.weight.data[3] = 1e6  # fp16 ends at 65504
    with pytest.raises(DataError, match=r"^model.norm.weight .*float16.* --dtype bf16$"):
        to_dtype(model, torch.float16)


def test_a_number_of_rows_without_the_rows_is_refused(base, checkpoint, tmp_path, capsys):
    command = ["--model", base, "--checkpoint", checkpoint, "--output", str(tmp_path / "new"), "--rows", "9"]
    assert export_module.main(command) == 2
    assert "--data" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_comparison_is_of_probabilities_and_labels():
    found = compare(np.array([0.2, 0.6, 0.49, 0.5]), np.array([0.3, 0.6, 0.51, 0.5]), 0.5)
    assert found["max_probability_difference"] == pytest.approx(0.1)
    assert found["mean_probability_difference"] == pytest.approx(0.03)  # (0.1 + 0 + 0.02 + 0) / 4
    assert found["labels_flipped"] == 1


# -------------------------------------------------------------------------------------------------- the folder


def test_the_folder_is_a_plain_16_bit_model_with_tokenizer_template_and_greedy_generation(exported):
    folder, _ = exported
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "export.json", "fraud_task.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["model_type"] == "qwen2" and "quantization_config" not in config
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"] and not generation.get("do_sample")
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())


def test_from_pretrained_loads_it_and_it_answers_as_the_checkpoint_does(exported, loaded):
    folder, _ = exported
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    task = loaded[0].lineage.task
    scores = score_model(model, tokenizer, task, DIALOGUES)
    np.testing.assert_allclose(scores, score_model(*loaded, task, DIALOGUES), atol=0.02)  # bf16 has 8 bits
    assert scores.max() - scores.min() > 0.5


def test_evaluate_reads_the_task_from_the_folder_and_quantises_nothing_again(exported, base):
    model, _ = load_model(str(exported[0]), "", "cpu")
    assert model.lineage.task == Task(**TASK)
    assert model.lineage.quantization["type"] == "none" and model.lineage.base["name"] == "merged"
    assert load_model(base, "", "cpu")[0].lineage.task == Task()


def test_the_measured_difference_is_that_of_the_written_folder(exported, loaded, eval_file, capsys):
    folder, facts = exported
    found = facts["comparison"]
    assert json.loads((folder / "export.json").read_text()) == json.loads(json.dumps(facts))
    assert found["data"]["rows"] == 6 and found["data"]["name"] == "eval.jsonl" and found["threshold"] == 0.25
    dialogues = [json.loads(line)["input"] for line in Path(eval_file).read_text().splitlines()[:6]]
    task = loaded[0].lineage.task
    merged = score_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), loaded[1], task, dialogues)
    away = np.abs(merged - score_model(*loaded, task, dialogues))
    assert found["max_probability_difference"] == pytest.approx(away.max(), abs=1e-6)
    assert found["mean_probability_difference"] == pytest.approx(away.mean(), abs=1e-6)


def test_the_folder_does_not_say_where_things_lay_on_this_disk(exported, base, checkpoint, train_file):
    for path in exported[0].iterdir():
        content = path.read_bytes()
        for place in (base, checkpoint, train_file):
            assert str(Path(place).parent).encode() not in content, path.name


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    for taken in (tmp_path, tmp_path / "kept.txt"):
        with pytest.raises(DataError, match=f"^{taken}: "):
            export("no-model", "no-checkpoint", taken)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty")
    refuse_existing(tmp_path / "new")


def test_the_folder_that_one_stands_in_is_refused_before_anything_is_merged_if_it_is_empty_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for here in (".", tmp_path):
        with pytest.raises(DataError, match="the folder you are in"):
            export("no-model", "no-checkpoint", here)


def test_a_base_whose_configuration_is_cut_short_is_refused_in_one_line_with_gguf_too(base, checkpoint, tmp_path):
    broken = Path(shutil.copytree(base, tmp_path / "broken"))
    (broken / "config.json").write_text("{")
    for gguf in (False, True):
        with pytest.raises(DataError, match=f"^{broken}.*not a "):
            export(str(broken), checkpoint, tmp_path / "merged", gguf=gguf)


def test_an_export_that_fails_leaves_nothing(base, checkpoint, tmp_path, monkeypatch):
    def full(*args):
        assert any(path.name.startswith(".merged.") for path in tmp_path.iterdir())  # written beside
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "render_card", full)
    with pytest.raises(DataError, match="merged: .*No space left on device"):
        export(base, checkpoint, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(DataError, match="cannot be written"), complete_or_absent(tmp_path / "merged") as unfinished:
        (unfinished / "ours").write_text("")
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "theirs").write_text("")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["merged", "merged/theirs"]


def test_an_adapter_trained_over_unquantised_weights_is_merged_into_those(base, checkpoint, eval_file, tmp_path):
    unquantised = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint-80"))
    saved = json.loads((unquantised / "fraud_task.json").read_text())
    saved["quantization"]["type"] = "none"
    (unquantised / "fraud_task.json").write_text(json.dumps(saved))
    facts = export(base, str(unquantised), tmp_path / "merged", data_path=eval_file, dtype="fp32")
    assert facts["merged_into"] == "original" and facts["comparison"]["max_probability_difference"] < 1e-5
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "were not quantised in training" in card and "NF4" not in card


# ---------------------------------------------------------------------------------------------------- the card


@pytest.mark.parametrize("prevalence, recall, rate, precision", [
    (0.01, 0.9, 0.01, 0.009 / (0.009 + 0.0099)),
    (0.001, 0.8, 0.05, 0.0008 / (0.0008 + 0.04995)),
    (0.5, 1.0, 0.0, 1.0),
    (0.01, 0.0, 0.0, None),
])
def test_precision_follows_from_prevalence_recall_and_false_positive_rate(prevalence, recall, rate, precision):
    assert precision_at(prevalence, recall, rate) == pytest.approx(precision)


def test_the_card_holds_the_reports_figures_beside_intervals_baselines_and_renamed_speakers(
        exported, loaded, report_file):
    folder, facts = exported
    report = json.loads(Path(report_file).read_text())
    report.update(tp=45, fn=5, fp=2, tn=98, n=150, precision=0.9574, recall=0.9, f1=0.9278, accuracy=None)
    report["intervals"].update(recall=[0.8123, 0.9654], accuracy=None)
    report["speakers_renamed"] = {figure: None for figure in FIGURES} | {"recall": 0.8765}
    report["baselines"] = {"tfidf": {"precision": 0.7, "recall": 0.6, "f1": 0.6462,
                                     "model_f1_minus_this": {"value": 0.28, "interval": [0.1111, 0.4444]}}}
    card = render_card("merged", facts, loaded[0].lineage, _encoder(loaded), report)
    assert "| recall | 0.9000 | 0.8123 to 0.9654 | 0.8765 |" in card
    assert re.search(r"\| accuracy \| undefined \| undefined \|", card)
    assert "| tfidf | 0.7000 | 0.6000 | 0.6462 | 0.1111 to 0.4444 |" in card
    # 45/50 and 2/100: 0.009 / (0.009 + 0.0198), 0.0009 / (0.0009 + 0.01998); Wilson's upper end of 2/100 is 0.0700
    assert "| 1.0% | 0.3125 | 0.1149 |" in card and "| 0.1% | 0.0431 | 0.0127 |" in card
    assert "recall 45/50" in card and "fpr 2/100" in card and "Wilson; 0.0700" in card
    assert report["provenance"]["data"]["sha256"] in card and loaded[0].lineage.train_data["sha256"] in card


def test_the_card_shows_the_prompt_and_the_threshold_exactly_as_used(exported, loaded):
    _, tokenizer = loaded
    message = {"role": "user", "content": TASK["instruction"] + "DIALOGUE"}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    card = (exported[0] / "README.md").read_text()
    assert f"```\n{text}\n```" in card
    assert "**0.25**" in card and "at most 400 tokens" in card and "replaced by A, B, C" in card
    assert "line-aware" not in card and "temperature **" not in card
    assert "a threshold of 0.5 on the answer alone" in card  # what a server writes, which knows no other

    def card_by(decision: Decision) -> str:
        lineage = dataclasses.replace(loaded[0].lineage, decision=decision)
        facts = json.loads((exported[0] / "export.json").read_text())
        return render_card("model", facts, lineage, PromptEncoder(tokenizer, lineage.task), None)

    card = card_by(Decision(line_weight=0.3, temperature=0.75, bias=0.5))
    assert "line-aware" in card and "by the temperature **0.75**, and the bias **0.5** is added" in card
    assert "on the answer alone" in card
    assert "on the answer alone" not in card_by(Decision(temperature=0.75))  # 0.5 stays 0.5
    assert "on the answer alone" in card_by(Decision(bias=0.5))


def test_the_hub_reads_the_cards_front_matter(exported, loaded, report_file):
    data = ModelCard((exported[0] / "README.md").read_text()).data
    report = json.loads(Path(report_file).read_text())
    assert (data.language, data.license, data.library_name) == ("zh", "other", "transformers")
    assert data.base_model is None  # a folder's name is no id on the hub
    assert {result.metric_type: result.metric_value for result in data.eval_results}["recall"] == report["recall"]
    facts = {**exported[1], "base": {**exported[1]["base"], "hub_id": "Qwen/Qwen2-1.5B-Instruct"}}
    data = ModelCard(render_card("merged", facts, loaded[0].lineage, _encoder(loaded), None)).data
    assert data.base_model == "Qwen/Qwen2-1.5B-Instruct" and data.eval_results is None


def test_without_a_report_the_card_says_so_and_claims_no_figure(exported, loaded):
    facts = {**exported[1], "comparison": None}
    card = render_card("merged", facts, loaded[0].lineage, _encoder(loaded), None)
    assert "No report was given" in card and "was not measured" in card
    assert not re.search(r"\d\.\d{3}", card)
    assert "recall" not in card and "precision" not in card


def test_a_report_on_something_else_is_refused(base, checkpoint, report_file, tmp_path):
    report = json.loads(Path(report_file).read_text())
    path = tmp_path / "report.json"

    def refusal(content: str) -> str:
        path.write_text(content)
        with pytest.raises(DataError) as caught:
            export(base, checkpoint, tmp_path / "merged", report_path=str(path))
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        return str(caught.value)

    other = {**report["provenance"], "checkpoint": {"name": "checkpoint-3", "adapter_sha256": "f" * 64}}
    assert "a report on adapter ffffffffffff, not" in refusal(json.dumps({**report, "provenance": other}))
    untuned = {**report["provenance"], "checkpoint": None}
    assert "a model without adapter" in refusal(json.dumps({**report, "provenance": untuned}))
    assert "made with threshold 0.5, where the checkpoint has 0.25" in refusal(json.dumps({**report, "threshold": 0.5}))
    assert "made with temperature 2, " in refusal(json.dumps({**report, "temperature": 2.0}))
    weighted = {**report["provenance"], "line_weight": 0.3}
    assert "made with line_weight 0.3, " in refusal(json.dumps({**report, "provenance": weighted}))
    del report["recall"]
    assert "not a report of evaluate.py --output: no 'recall'" in refusal(json.dumps(report))
    for nonsense in ("", "[1]", "7", '{"provenance": 1}'):
        assert "not a report of evaluate.py --output" in refusal(nonsense)
    assert not (tmp_path / "merged").exists()


def test_a_report_that_names_no_bias_is_one_without(loaded, report_file, tmp_path):
    report, lineage = json.loads(Path(report_file).read_text()), loaded[0].lineage
    del report["bias"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    assert read_report(path, lineage) == report
    biased = dataclasses.replace(lineage, decision=dataclasses.replace(lineage.decision, bias=0.5))
    with pytest.raises(DataError, match="made with bias 0, where the checkpoint has 0.5"):
        read_report(path, biased)


def _encoder(loaded):
    return PromptEncoder(loaded[1], loaded[0].lineage.task)


# -------------------------------------------------------------------------------------------------------- GGUF


def test_gguf_without_its_package_is_refused_before_anything_is_loaded(base, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(export_module, "load_base", None)
    with pytest.raises(DataError, match="^--gguf .*: pip install gguf$"):
        export(base, checkpoint, tmp_path / "merged", gguf=True)


@pytest.mark.parametrize("change", [
    {"model_type": "llama"}, {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, {"hidden_act": "gelu"},
    {"layer_types": ["full_attention", "sliding_attention"]}])
def test_gguf_of_anything_but_a_plain_qwen2_is_refused(base, monkeypatch, change):
    monkeypatch.setitem(sys.modules, "gguf", types.ModuleType("gguf"))
    config = AutoConfig.from_pretrained(base).to_dict()
    require_gguf_support(types.SimpleNamespace(**config))
    with pytest.raises(DataError, match="--gguf writes .*convert_hf_to_gguf.py"):
        require_gguf_support(types.SimpleNamespace(**{**config, **change}))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_gguf_holds_the_merged_weights_the_configuration_and_the_tokenizer(base, checkpoint, tmp_path, dtype):
    gguf = pytest.importorskip("gguf", reason="optional: pip install gguf")
    export(base, checkpoint, tmp_path / "merged", dtype=dtype, gguf=True)
    reader = gguf.GGUFReader(tmp_path / "merged" / f"model-{dtype}.gguf")

    merged = load_file(tmp_path / "merged" / "model.safetensors")
    written = {tensor.name: tensor for tensor in reader.tensors}
    assert len(written) == len(merged) == 2 * 12 + 2
    for name, (theirs, transposed) in {
        "model.embed_tokens.weight": ("token_embd.weight", [64, 390]),
        "model.norm.weight": ("output_norm.weight", [64]),
        "model.layers.0.self_attn.k_proj.weight": ("blk.0.attn_k.weight", [64, 32]),
        "model.layers.1.self_attn.q_proj.bias": ("blk.1.attn_q.bias", [64]),
        "model.layers.1.mlp.down_proj.weight": ("blk.1.ffn_down.weight", [128, 64]),
        "model.layers.0.post_attention_layernorm.weight": ("blk.0.ffn_norm.weight", [64]),
    }.items():
        tensor = written[theirs]
        assert tensor.shape.tolist() == transposed  # GGUF counts dimensions from the innermost
        kind = "F32" if len(transposed) == 1 else {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}[dtype]
        assert tensor.tensor_type.name == kind  # llama.cpp wants norms and biases in fp32
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(values, merged[name].float().numpy())

    def field(key):
        return reader.get_field(key).contents()

    tokenizer = AutoTokenizer.from_pretrained(base)
    assert [field(f"qwen2.{key}") for key in (
        "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "attention.key_length", "rope.freq_base")] == [2, 2048, 64, 128, 4, 2, 16, 10000.0]
    assert field("qwen2.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert (field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")) == ("gpt2", "qwen2")
    tokens = field("tokenizer.ggml.tokens")
    assert tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[field("tokenizer.ggml.eos_token_id")] == "<|im_end|>"
    assert tokens[field("tokenizer.ggml.padding_token_id")] == "<|endoftext|>"
    kinds = field("tokenizer.ggml.token_type")
    assert [kinds[tokens.index(word)] for word in ("<|im_start|>", "<|im_end|>", "a")] == [3, 3, 1]  # control, normal
    assert field("tokenizer.chat_template") == tokenizer.chat_template


# ------------------------------------------------------------------------------------------ the command line


def test_the_command_exports_and_prints_the_comparison(base, checkpoint, eval_file, tmp_path, capsys):
    code = export_module.main(["--model", base, "--checkpoint", checkpoint, "--output", str(tmp_path / "merged"),
                               "--data", eval_file, "--rows", "4", "--merge-into", "original", "--device", "cpu"])
    out = capsys.readouterr().out
    assert code == 0 and "checkpoint-80 merged into its original weights, bf16" in out
    assert json.loads(out[out.index("{"):])["comparison"]["data"]["rows"] == 4


def test_the_command_says_what_is_wrong_in_one_line(base, checkpoint, tmp_path, capsys):
    def attempt(**changed):
        options = {"model": base, "checkpoint": checkpoint, "output": str(tmp_path / "merged"), **changed}
        code = export_module.main([part for name, value in options.items() for part in (f"--{name}", value)])
        return code, [line for line in capsys.readouterr().err.splitlines() if line and "Loading" not in line]

    code, lines = attempt(checkpoint=str(tmp_path / "none"))
    assert code == 2 and lines == [f"{tmp_path}/none: no such folder; a checkpoint is a folder such as "
                                   "outputs/run/checkpoint-100"]
    assert attempt(data=str(tmp_path / "none.jsonl")) == (2, [f"{tmp_path}/none.jsonl: no such file"])
    assert attempt(report=str(tmp_path / "none.json")) == (2, [f"{tmp_path}/none.json: No such file or directory"])
    with pytest.raises(SystemExit, match="2"):
        attempt(rows="0")


def test_the_written_task_is_the_checkpoints(exported, checkpoint):
    saved = json.loads((exported[0] / "fraud_task.json").read_text())
    lineage = read_checkpoint(checkpoint)
    assert Task(**saved["task"]) == lineage.task == Task(**TASK)
    assert Decision(**saved["decision"]) == lineage.decision == Decision(**DECISION)
    assert saved["adapter_sha256"] == lineage.adapter_sha256
    assert saved["quantization"] == {"type": "nf4", "double": False}
    assert saved["train_data"] == {key: lineage.train_data[key] for key in ("name", "sha256", "rows")}
    assert saved.keys() == dataclasses.asdict(lineage).keys() - {"checkpoint"} | {"versions"}

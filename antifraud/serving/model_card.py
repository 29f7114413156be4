"""Writes the model card of an exported model; every figure in it comes from a report or from the export itself."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from scipy.stats import binomtest

from data.files import DataError
from data.prompt import PromptEncoder

from ..checkpoint import Lineage
from ..evaluation.metrics import figure_text, interval_text

FIGURES = ("precision", "recall", "f1", "accuracy", "average_precision")
PREVALENCES = (0.01, 0.001)
REPORT_KEYS = ("n", "tn", "fp", "fn", "tp", *FIGURES, "threshold", "intervals", "unparsed", "speakers_renamed",
               "baselines", "provenance")


def read_report(path: str | Path, lineage: Lineage) -> dict:
    """A report of ``evaluate.py --output`` on the checkpoint that is exported.

    Raises:
        DataError: not such a report, or one on another adapter, or from before its calibration.
    """
    adapter_sha256 = lineage.adapter_sha256
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        missing = [key for key in REPORT_KEYS if key not in report]
        judged = (report["provenance"]["checkpoint"] or {}).get("adapter_sha256") if not missing else None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: not a report of evaluate.py --output") from None
    if missing:
        raise DataError(f"{path}: not a report of evaluate.py --output: no {missing[0]!r}")
    if judged != adapter_sha256:
        other = f"adapter {judged[:12]}" if judged else "a model without adapter"
        raise DataError(f"{path}: a report on {other}, not on the adapter {adapter_sha256[:12]} to be exported")
    made_with = {"bias": 0.0, **report["provenance"], **report}  # older reports name none
    for name, value in dataclasses.asdict(lineage.decision).items():
        if made_with.get(name, value) != value:
            raise DataError(f"{path}: made with {name} {made_with[name]:.6g}, where the checkpoint has {value:.6g}; "
                            "make it again: evaluate.py --data F --output REPORT, without --threshold")
    return report


def precision_at(prevalence: float, recall: float, false_positive_rate: float) -> float | None:
    """Share of alarms that are right where a share `prevalence` of dialogues is fraud; None without alarms."""
    right = recall * prevalence
    alarms = right + false_positive_rate * (1 - prevalence)
    return right / alarms if alarms else None


def render_card(name: str, facts: dict, lineage: Lineage, prompt: PromptEncoder, report: dict | None) -> str:
    """The README.md of an exported folder called `name`.

    Args:
        facts: what ``export.json`` holds.
        prompt: the encoder of the exported task, for the prompt exactly as used.
        report: of the checkpoint, as `read_report` gives it; None leaves every figure out, and says so.
    """
    sections = [_what_it_is(name, facts), _training_data(lineage), _prompt(lineage, prompt)]
    sections += _figures(report) if report else [
        "## Figures\n\nNo report was given when this model was exported: nothing is claimed about how good it is. "
        "`python evaluate.py --model FOLDER --data F` measures it."]
    sections += [_limits(report), _loading(name, facts, lineage), _licence(facts)]
    return front_matter(name, facts, report) + "\n".join(section + "\n" for section in sections)


def front_matter(name: str, facts: dict, report: dict | None) -> str:
    """The YAML that the Hugging Face hub reads."""
    results = None
    if report:
        data = report["provenance"]["data"]
        results = [EvalResult(task_type="text-classification", task_name="fraud in a dialogue",
                              dataset_type=data["name"], dataset_name=data["name"], metric_type=figure,
                              metric_value=report[figure]) for figure in FIGURES if report[figure] is not None]
    card = ModelCardData(
        language="zh", license="other", license_name="see-base-model-and-data", library_name="transformers",
        pipeline_tag="text-generation", tags=["fraud-detection", "qlora", "peft", "dialogue"],
        base_model=facts["base"]["hub_id"], base_model_relation="finetune" if facts["base"]["hub_id"] else None,
        model_name=name, eval_results=results)
    return f"---\n{card.to_yaml()}\n---\n\n"


def _what_it_is(name: str, facts: dict) -> str:
    base, adapter, over = facts["base"], facts["adapter"], facts["trained_over"]
    rows = [("base model", facts["base"]["hub_id"] or base["name"]), ("its fingerprint", f"`{base['fingerprint']}`"),
            ("adapter", f"{adapter['checkpoint']}, sha256 `{adapter['sha256']}`"),
            ("trained over", _weights(over)),
            ("merged into", f"the {facts['merged_into']} weights, written as {facts['dtype']}")]
    return (f"# {name}\n\nReads a Chinese dialogue and answers whether it holds an attempt at fraud. A LoRA adapter "
            f"was trained over {_weights(over)} and then merged into them: this folder is a plain causal language "
            "model. Made to help people decide, never to decide.\n\n"
            + _table(("", ""), rows) + "\n\n" + _merging(facts))


def _weights(quantization: dict) -> str:
    if quantization["type"] == "none":
        return "unquantised base weights"
    return f"{quantization['type'].upper()} base weights" + (", doubly quantised" if quantization["double"] else "")


def _merging(facts: dict) -> str:
    if facts["trained_over"]["type"] == "none":
        text = "The base weights were not quantised in training: merged into them, it answers as then but for rounding."
    elif facts["merged_into"] == "dequantized":
        text = ("The adapter learnt to correct the quantised weights. Merged into what those weights stand for, it "
                "answers as it did in training but for rounding.")
    else:
        text = ("The base model's original weights are not exactly those that the adapter was trained over, so answers "
                "differ from the checkpoint's.")
    found = facts["comparison"]
    if not found:
        return text + " How far the answers differ was not measured (`--data`)."
    return (f"{text} Measured on {found['data']['rows']} rows of {found['data']['name']} (sha256 "
            f"`{found['data']['sha256']}`, {found['device']}): the probability of fraud differs by at most "
            f"{found['max_probability_difference']:.2g}, {found['mean_probability_difference']:.2g} on average, and "
            f"{found['labels_flipped']} of {found['data']['rows']} labels flip at the threshold {found['threshold']}.")


def _training_data(lineage: Lineage) -> str:
    data = lineage.train_data
    if not data:
        return "## Training data\n\nThe checkpoint does not say what it was trained on."
    soup = f" The adapter is a model soup of {len(lineage.averaged)} seeds." if lineage.averaged else ""
    return f"## Training data\n\n`{data['name']}`, {data['rows']} records, sha256 `{data['sha256']}`.{soup}"


def _prompt(lineage: Lineage, prompt: PromptEncoder) -> str:
    task, decode = lineage.task, prompt.tokenizer.decode
    names = ("Speaker names are replaced by A, B, C, ... in order of appearance before the model sees them."
             if task.neutral_speakers else "Speaker names are left as they are.")
    decision = lineage.decision
    highest = "the highest" if decision.top_lines == 1 else f"the mean of the {decision.top_lines} highest"
    lines = (f"Inference is line-aware: in log-odds, {decision.line_weight:.0%} is {highest} softmax at the ends of "
             "the lines, over the same two tokens. " if decision.line_aware else "")
    if decision.temperature != 1 or decision.bias:
        lines += (f"The log-odds are divided by the temperature **{decision.temperature}**, and the bias "
                  f"**{decision.bias}** is added. ")
    form = (f"Texts are brought into normal form (`data/normalise.py`, version {task.normaliser}) first. "
            if task.normaliser else "")
    exact = f"{decode(prompt.head)}DIALOGUE{decode(prompt.tail)}"
    return ("## Prompt\n\nExactly as used, line ends included; `DIALOGUE` stands for one line `name: words` a turn."
            f"\n\n{_code(exact)}\n\nThe answer is `{task.answers[0]}` for fraud, `{task.answers[1]}` otherwise. The "
            f"probability of fraud is the softmax over the two tokens in which these first differ. {lines}From "
            f"**{lineage.decision.threshold}** on a dialogue is called fraud. {form}{names} Prompt and answer take at "
            f"most {task.max_length} tokens; `evaluate.py` reads longer dialogues in overlapping windows, of which the "
            "highest probability counts.")


def _figures(report: dict) -> list[str]:
    return [_metrics(report), _baselines(report), _rare_fraud(report)]


def _metrics(report: dict) -> str:
    data, intervals = report["provenance"]["data"], report["intervals"]
    renamed = report["speakers_renamed"] or {}
    rows = [(name.replace("_", " "), figure_text(report[name]), interval_text(intervals.get(name)),
             figure_text(renamed[name]) if renamed else "–") for name in FIGURES]
    return (f"## Figures\n\nOf the checkpoint before merging, on `{data['name']}` ({report['n']} rows, sha256 "
            f"`{data['sha256']}`) at the threshold {report['threshold']}: {report['tp']} frauds found, {report['fn']} "
            f"missed, {report['fp']} false alarms, {report['tn']} rightly passed, {report['unparsed']} unreadable "
            f"answers. Intervals by resampling {intervals.get('resampled', 'rows')}.\n\n"
            + _table(("", "value", "95 % interval", "with speakers renamed"), rows))


def _baselines(report: dict) -> str:
    if not report["baselines"]:
        return "### Baselines\n\nThe report holds none; `evaluate.py --full` makes them."
    rows = [(name.replace("_", " "), *(figure_text(found[key]) for key in ("precision", "recall", "f1")),
             interval_text(found["model_f1_minus_this"]["interval"])) for name, found in report["baselines"].items()]
    rows = [("**this model**", *(figure_text(report[key]) for key in ("precision", "recall", "f1")), "")] + rows
    return "### Baselines on the same rows\n\n" + _table(
        ("", "precision", "recall", "f1", "95 % interval of this model's f1 minus theirs"), rows)


def _rare_fraud(report: dict) -> str:
    frauds, others = report["tp"] + report["fn"], report["fp"] + report["tn"]
    if not frauds or not others:
        return "### Where fraud is rare\n\nThe report holds only one of the two classes: no precision can be computed."
    recall, rate = report["tp"] / frauds, report["fp"] / others
    upper = binomtest(report["fp"], others).proportion_ci(0.95, method="wilson").high
    rows = [(f"{prevalence:.1%}", figure_text(precision_at(prevalence, recall, rate)),
             figure_text(precision_at(prevalence, recall, upper))) for prevalence in PREVALENCES]
    share = frauds / (frauds + others)
    return (f"### Where fraud is rare\n\nOf the rows above {share:.0%} are fraud; in real life few dialogues are. "
            "Where a share *p* is, the share of alarms that are right is "
            "*recall p / (recall p + fpr (1 - p))*, with the report's recall "
            f"{report['tp']}/{frauds} and its false-positive rate fpr {report['fp']}/{others}. {others} non-fraud "
            "rows leave that rate uncertain: the last column takes the upper end of its 95 % interval (Wilson; "
            f"{upper:.4f}), which is still too kind where several rows are segments of one dialogue.\n\n"
            + _table(("share of fraud", "precision", "precision at the upper end"), rows))


def _limits(report: dict | None) -> str:
    unknown = ["how it does on real calls, or on any dialogue unlike those of its training data",
               "how it does against people who know it and word their scam accordingly",
               "how it does on transcripts with recognition errors, dialects or other languages"]
    if not report:
        unknown.insert(0, "every figure of quality: no report was given")
    elif not report.get("overlap_with_train"):
        unknown.insert(0, "how much of the rows it was judged on resembles its training data: the report does not say")
    return ("## Intended use and limits\n\nA hint for a person who reads the dialogue too. Not for blocking a payment, "
            "closing an account, accusing anybody, or any other step that nobody looks over; not for listening to "
            "people without their consent. A low probability is no all-clear.\n\nNot known:\n\n"
            + "\n".join(f"- {line}" for line in unknown))


def _loading(name: str, facts: dict, lineage: Lineage) -> str:
    base = facts["base"]["hub_id"] or f"path/to/{facts['base']['name']}"
    merged = ("from transformers import AutoModelForCausalLM, AutoTokenizer\n"
              f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
              f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")')
    adapter = (f'model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")\n'
               f'model = PeftModel.from_pretrained(model, "path/to/{facts["adapter"]["checkpoint"]}")  # from peft\n'
               "model = model.merge_and_unload()")
    names = ", speakers already called A, B, C, ..." if lineage.task.neutral_speakers else ""
    served = (f"As a server: `vllm serve {name}`; send the instruction and the dialogue as one user message{names}, "
              "with `temperature` 0.")
    if facts["gguf"]:
        served += f" For llama.cpp: `{facts['gguf']}`."
    if lineage.decision.line_aware or lineage.decision.bias or lineage.decision.threshold != 0.5:
        served += (" A server writes the likelier answer, which is a threshold of 0.5 on the answer alone, without a "
                   "bias, not the one above that the figures are of. For that one compute the probability from the two "
                   "tokens' log-probabilities, as said under Prompt, or use `evaluate.py`.")
    return (f"## Loading\n\n{_code(merged, 'python')}\n\nThe adapter alone, over the 16-bit base weights:\n\n"
            f"{_code(adapter, 'python')}\n\nProbabilities as above: `python evaluate.py --model {name} --data F`, "
            f"which reads the task from `fraud_task.json`. {served}")


def _licence(facts: dict) -> str:
    hub_id = facts["base"]["hub_id"]
    where = f"[its page](https://huggingface.co/{hub_id})" if hub_id else "its own page"
    return (f"## Licence\n\nThese weights are derived from {hub_id or facts['base']['name']}: its licence applies "
            f"({where}), and so do the terms of the training data. Whoever publishes this folder replaces "
            "`license: other` above by what follows from the two.")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _code(text: str, language: str = "") -> str:
    """A fenced block whose fence is longer than any inside."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"

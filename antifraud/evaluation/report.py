"""The report on a model: a core that takes seconds, and optional parts that are made when they are asked for.

What was not asked for, or failed, is None in the report and named with the reason in its ``not_made``: a baseline that
cannot be fitted on six records costs the baselines and nothing else.
"""

import functools
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, replace

import numpy as np
from peft import PeftModel
from scipy.special import expit
from tqdm.auto import tqdm

from data.files import DataError, one_line
from data.prompt import PromptEncoder
from data.records import groups_of

from ..checkpoint import Lineage, lineage_of, provenance_of
from .beside import on_free_cores, start_cpu_work
from .calibration import at_prevalence, bounded_threshold, quiet_above, reliability
from .calls import alarms_allowed, alarms_by_category, call_report, most_alarmed, ordinary_report, paired_by_call
from .errors import error_report
from .inputs import Inputs
from .labels import audit_labels
from .lines import line_report
from .metrics import (
    against_scores,
    classification_metrics,
    confidence_intervals,
    figure_text,
    interval_text,
    rate_differences,
    threshold_table,
)
from .probes import NOT_NORMALISED, probe_report
from .scoring import Reading, Row, generate_answers, parse_answer, predict_readings, read_dialogues

NOT_ASKED = "not asked for; add --full (in Python, full=True)"


@dataclass(frozen=True)
class Scored:
    """What the model said of the dialogues to judge.

    Attributes:
        encoder: of the model's task.
        readings: [records] as the model read them.
        odds: log-odds at each place of their rows.
        answers: [records] None where a generated answer was not readable.
        scores: [records] calibrated probabilities.
        ordinary_scores: the same of the ordinary dialogues.
        threshold: probability from which on a dialogue is fraud.
    """

    encoder: PromptEncoder
    readings: list[Reading]
    odds: dict[Row, np.ndarray]
    answers: list[bool | None]
    scores: np.ndarray
    ordinary_scores: np.ndarray
    threshold: float


def make_report(model, tokenizer, inputs: Inputs) -> dict:
    """Judges a model on what `read_inputs` read; returns the report, the same in Python and JSON.

    Raises:
        FloatingPointError: a score of the dialogues to judge is not finite.
    """
    lineage = lineage_of(model)
    encoder = PromptEncoder(tokenizer, lineage.task)
    beside = start_cpu_work(encoder, inputs, lineage, model.device.type)
    with on_free_cores(model, beside):
        return _report(model, encoder, inputs, lineage, beside)


def _report(model, encoder: PromptEncoder, inputs: Inputs, lineage: Lineage, beside: Mapping[str, Future]) -> dict:
    threshold = lineage.decision.threshold if inputs.threshold is None else inputs.threshold
    readings, ordinary = (read_dialogues(encoder, [record["input"] for record in rows],
                                         line_aware=lineage.decision.line_aware)
                          for rows in (inputs.records, inputs.ordinary))
    odds: dict[Row, np.ndarray] = {}
    started = time.perf_counter()
    predictions = predict_readings(model, [*readings, *ordinary], odds_of=odds,
                                   progress="scoring" if inputs.progress else None)
    rows_per_second = len(predictions) / (time.perf_counter() - started)
    judged = predictions[:len(readings)]
    scores, ordinary_scores = (np.array([one.probability for one in part])
                               for part in (judged, predictions[len(readings):]))
    answers: list[bool | None] = (scores >= threshold).tolist()
    agreement, truncated = None, 0  # scores are of windows, which read all; generating reads what fits into one
    if inputs.method == "generate":
        started = time.perf_counter()
        prompts = encoder.prompts([record["input"] for record in inputs.records])
        truncated = sum(prompts.truncated)
        answers, agreement = _generated(model, encoder, prompts, inputs, answers)
        rows_per_second = len(judged) / (time.perf_counter() - started)
    scored = Scored(encoder=encoder, readings=readings, odds=odds, answers=answers, scores=scores,
                    ordinary_scores=ordinary_scores, threshold=threshold)

    return {
        **_core(inputs, scored, np.array([one.score for one in judged]), lineage),
        "method": inputs.method,
        "agreement_of_methods": agreement,
        "in_windows": sum(one.windows > 1 for one in judged),
        "truncated": truncated,
        **error_report(inputs.numbered, answers, scores, [sum(len(row.ids) for row in one.rows) for one in readings],
                       with_text=inputs.with_text),
        **_optional_parts(model, inputs, scored, beside),
        "rows_per_second": rows_per_second,
        "provenance": {**provenance_of(model, inputs.path, len(judged)), "ordinary": inputs.ordinary_files,
                       "encoders": {name: encoder.about for name, encoder in inputs.encoders.items()}},
    }


def _generated(model, encoder: PromptEncoder, prompts, inputs: Inputs, by_score: Sequence[bool]
               ) -> tuple[list[bool | None], dict]:
    """The generated answers, and how often they agree with those by score."""
    texts = generate_answers(model, encoder, prompts, tokens_a_batch=None if inputs.batch else 1,
                             progress="generating" if inputs.progress else None)
    answers = [parse_answer(text, encoder.task) for text in texts]
    both = [(one, other) for one, other in zip(answers, by_score) if one is not None]
    same = sum(one == other for one, other in both)
    return answers, {"rows": len(both), "agree": same, "share": same / len(both) if both else None}


def _answered(records: Sequence[dict], answers: Sequence[bool | None]
              ) -> tuple[list[int], list[bool], list[bool], Sequence[Hashable] | None]:
    """(rows, labels, answers, dialogues) of the records that were answered."""
    rows = [row for row, answer in enumerate(answers) if answer is not None]
    answered = [records[row] for row in rows]
    return rows, [record["label"] for record in answered], [answers[row] for row in rows], groups_of(answered)


def _core(inputs: Inputs, scored: Scored, uncalibrated: np.ndarray, lineage: Lineage) -> dict:
    """Metrics and intervals over the rows that were answered (others are ``unparsed``), threshold and calibration."""
    answers, scores = scored.answers, scored.scores
    rows, y_true, y_pred, groups = _answered(inputs.records, answers)
    labels = [record["label"] for record in inputs.records]
    return {
        "n": len(answers),
        "unparsed": len(answers) - len(rows),
        **classification_metrics(y_true, y_pred, scores[rows]),
        "intervals": {**confidence_intervals(y_true, y_pred, scores[rows], groups),
                      "resampled": "rows" if groups is None else "dialogues"},
        "at_prevalence": at_prevalence(y_true, y_pred, groups),
        "threshold": scored.threshold,
        "temperature": lineage.decision.temperature,
        "bias": lineage.decision.bias,
        "calibration": {"before": reliability(labels, uncalibrated), "after": reliability(labels, scores),
                        "fitted_on": lineage.calibration or None},
        "thresholds": threshold_table(labels, scores),
        "skipped": inputs.skipped,
    }


# ------------------------------------------------------------------------------------------------ optional parts


def _attempt(not_made: dict, name: str, make: Callable[[], object], unless: str | None = None) -> object | None:
    """What `make` returns; None, with the reason in `not_made`, `unless` it is wanted, and where it fails."""
    try:
        made = None if unless else make()
    except Exception as error:  # whatever it was: the core is worth more
        made, unless = None, one_line(error)
    if made is None:
        not_made[name] = unless or "these records do not tell"
    return made


def _optional_parts(model, inputs: Inputs, scored: Scored, beside: Mapping[str, Future]) -> dict:
    """What a report holds besides its core; what is not wanted or fails is None, and named in ``not_made``."""
    records = inputs.records
    not_made: dict[str, str] = {}
    not_full = None if inputs.full else NOT_ASKED

    # The model's work first; the processes go on meanwhile.
    probes = _attempt(not_made, "probes", lambda: probe_report(
        model, scored.encoder, records, scored.readings, scored.scores, texts=beside["probed"].result(),
        threshold=scored.threshold, groups=groups_of(records),
        progress="probing" if inputs.progress else None), not_full)
    untuned = _attempt(not_made, "untuned", lambda: _untuned_scores(
        model, scored.readings, progress="scoring, untuned" if inputs.progress else None), not_full)
    encoders = {name: sets for name, kept in inputs.encoders.items() if (sets := _attempt(
        not_made, name, functools.partial(_encoder_answers, kept.folder, inputs, beside, model.device.type)))}
    for _ in tqdm(as_completed(beside.values()), desc="baselines, label audit, overlap", total=len(beside),
                  disable=not (inputs.full and inputs.progress)):  # what is not done yet may take minutes
        pass
    baselines = _attempt(not_made, "tfidf", lambda: beside["answers"].result(), not_full) or {
        "probabilities": {}, "rule": None, "lines": None, "note": None}
    if baselines["note"]:
        not_made["kept_baselines"] = baselines["note"]
    others = {**_by_classifier(baselines["probabilities"]), **inputs.peers, **encoders,
              **({} if untuned is None else {"untuned": {"data": untuned}})}
    calibration = lineage_of(model).calibration
    thresholds = {name: chosen for name, sets in others.items() if "eval" in sets and (chosen := _attempt(
        not_made, f"threshold of {name}", functools.partial(_threshold, inputs, sets, calibration))) is not None}
    opinion = _attempt(not_made, "label_audit", lambda: beside["opinion"].result(), not_full)
    return {
        "probes": probes and _beside_others(probes, records, encoders, {
            of_set: found["tfidf"] for of_set, found in baselines["probabilities"].items() if "tfidf" in found}),
        "speakers_renamed": probes and {name: value for name, value in probes["speakers_renamed"].items()
                                        if not isinstance(value, dict)},  # the changes are under ``probes``
        "baselines": _attempt(not_made, "baselines", lambda: _compared(
            records, scored, others, thresholds, baselines["rule"]), None if others else not_made.get("tfidf")),
        "label_audit": opinion and audit_labels(records, scored.answers, *opinion),
        "overlap_with_train": _attempt(not_made, "overlap_with_train", lambda: beside["overlap"].result(), not_full),
        "lines": _attempt(not_made, "lines", lambda: line_report(
            records, _line_scores(scored), baselines["lines"], task=scored.encoder.task),
            _why_no_lines(model, records)),
        "ordinary": _attempt(
            not_made, "ordinary", lambda: _ordinary(inputs, scored, others, thresholds),
            None if inputs.ordinary else "no file of ordinary dialogues given; name one with --ordinary"),
        "calls": _attempt(not_made, "calls", lambda: _calls(inputs, scored, others, thresholds),
                          None if groups_of(records) else "the records do not say which dialogue they are from"),
        "not_made": not_made,
    }


def _untuned_scores(model, readings: Sequence[Reading], progress: str | None) -> np.ndarray:
    if not isinstance(model, PeftModel):
        raise DataError("the model has no adapter to leave out")
    answers_only = [replace(reading, rows=tuple(replace(row, places=row.places[-1:]) for row in reading.rows))
                    for reading in readings]
    with model.disable_adapter():
        return np.array([one.score for one in predict_readings(model, answers_only, progress=progress)])


def _encoder_answers(folder: str, inputs: Inputs, beside: Mapping[str, Future], device: str) -> dict[str, np.ndarray]:
    from .encoder import encoder_answers  # datasets takes a second to import

    probed = beside["probed"].result() if "probed" in beside else {}
    texts = {**inputs.texts, **{f"probe {name}": of_probe for name, of_probe in probed.items()}}
    return encoder_answers(folder, texts, device)


def _line_scores(scored: Scored) -> list[np.ndarray]:
    """[records] of each line in the first window the probability that it is part of a fraud."""
    return [expit(scored.odds[reading.rows[0]][:-1]) for reading in scored.readings]


def _why_no_lines(model, records: Sequence[dict]) -> str | None:
    if not lineage_of(model).decision.line_aware:
        return "the model was not trained with the auxiliary line loss"
    return None if all("line_labels" in record for record in records) else "the records do not label their lines"


def _threshold(inputs: Inputs, sets: Mapping[str, np.ndarray], calibration: Mapping) -> float:
    """Another classifier's threshold, by the target, and the bound on false alarms, that the model's was found with."""
    above, bound = -math.inf, calibration.get("ordinary")
    if bound and "ordinary_eval" not in sets:
        raise DataError("the model's keeps a bound on false alarms in ordinary calls; name those with --ordinary-eval")
    if bound:
        above = quiet_above(inputs.ordinary_eval, sets["ordinary_eval"], bound["at_most_per_hundred_calls"])
    return bounded_threshold([record["label"] for record in inputs.eval_split], sets["eval"], above,
                             **calibration.get("target") or {"best_f1": True})


def _by_classifier(probabilities: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """set -> classifier -> [records] as classifier -> set -> [records]."""
    sets = [name for name in probabilities if not name.startswith("probe ")]
    return {name: {of_set: probabilities[of_set][name] for of_set in sets} for name in probabilities.get("data", {})}


def _beside_others(probes: Mapping[str, dict], records: Sequence[dict], encoders: Mapping[str, Mapping],
                   tfidf: Mapping[str, np.ndarray]) -> dict:
    """The probes, each with what it does to others at 0.5, ``change_of_tfidf`` and by name ``change_of_encoders``.

    None where they do not read it: the model's question is no text of theirs.
    """
    y_true, groups = [record["label"] for record in records], groups_of(records)

    def change(name: str, sets: Mapping[str, np.ndarray]) -> dict | None:
        if f"probe {name}" not in sets:
            return None
        return rate_differences(y_true, sets[f"probe {name}"] >= 0.5, sets["data"] >= 0.5, groups)

    return {name: {**probe, "change_of_tfidf": change(name, tfidf),
                   "change_of_encoders": {of: change(name, sets) for of, sets in encoders.items()}}
            for name, probe in probes.items()}


def _compared(records: Sequence[dict], scored: Scored, others: Mapping, thresholds: Mapping[str, float],
              rule: str | None) -> dict | None:
    """Each other classifier beside the model, on the rows that were answered."""
    rows, y_true, y_pred, groups = _answered(records, scored.answers)
    if not rows:
        return None
    compared = {name: against_scores(y_true, y_pred, scored.scores[rows], sets["data"][rows], groups,
                                     threshold=thresholds.get(name)) for name, sets in others.items()}
    if "one_word" in compared:
        compared["one_word"]["rule"] = rule
    return compared


def _ordinary(inputs: Inputs, scored: Scored, others: Mapping, thresholds: Mapping[str, float]) -> dict:
    """False alarms of the model at its threshold and, under ``baselines``, of others at 0.5 and at their own."""
    of = functools.partial(ordinary_report, inputs.ordinary)
    return {**of(scored.ordinary_scores, scored.threshold),
            "by_category": alarms_by_category(inputs.ordinary, scored.ordinary_scores, scored.threshold),
            "baselines": {name: {**of(sets["ordinary"], 0.5), "at_threshold":
                                 of(sets["ordinary"], thresholds[name]) if name in thresholds else None}
                          for name, sets in others.items() if "ordinary" in sets}}


def _calls(inputs: Inputs, scored: Scored, others: Mapping, thresholds: Mapping[str, float]) -> dict:
    """The model by call, and others under ``baselines``, at their threshold from the eval split or at 0.5."""
    records = inputs.records

    def of(scores: np.ndarray, ordinary_scores: np.ndarray | None, threshold: float) -> dict:
        return call_report(records, scores, threshold,
                           None if ordinary_scores is None else (inputs.ordinary, ordinary_scores))

    return {**of(scored.scores, scored.ordinary_scores, scored.threshold),
            "baselines": {name: {**of(sets["data"], sets.get("ordinary"), thresholds.get(name, 0.5)),
                                 "model_average_precision_minus_this": paired_by_call(records, scored.scores,
                                                                                      sets["data"])}
                          for name, sets in others.items()}}


# ---------------------------------------------------------------------------------------------------- for a screen


def summary(report: dict, *, debug: bool = False) -> list[str]:
    """The article's lines, then one screen of what they leave out: intervals, TF-IDF, calls, ordinary dialogues."""
    lines = [f"tn：{report['tn']}, fp:{report['fp']}, fn:{report['fn']}, tp:{report['tp']}"] if debug else []
    lines.append(f"precision: {report['precision']}, recall: {report['recall']}, accuracy: {report['accuracy']}")
    if report["unparsed"]:
        lines.append(f"unparsed: {report['unparsed']} of {report['n']} answers are neither of the two and count "
                     "nowhere above")
    tfidf = (report["baselines"] or {}).get("tfidf")
    lines.append(f"{'':19}{'this model':<12}{'95 % interval':<20}" + ("TF-IDF" if tfidf else ""))
    beside = (tfidf or {}).get("at_threshold") or tfidf
    for name in ("precision", "recall", "f1", "average_precision"):
        other = (tfidf if name == "average_precision" else beside) or {}
        lines.append(f"{name:<19}{figure_text(report[name]):<12}{interval_text(report['intervals'][name]):<20}"
                     + (figure_text(other[name]) if tfidf else ""))
    if calls := report["calls"]:
        others = calls["non_fraud_calls"]
        rare = ", ".join(f"{figure_text(row['recall'])} at {alarms} false alarm{'s' * (alarms != '1')} per hundred"
                         for alarms, row in calls["at_false_alarms_per_hundred"].items()
                         if alarms_allowed(others, int(alarms)))  # one in a hundred cannot be seen in fewer calls
        lines.append(f"by call: recall {figure_text(calls['recall'])}, precision {figure_text(calls['precision'])} on "
                     f"{calls['n']} calls" + (f"; recall {rare} of {others} non-fraud calls" if rare else ""))
    if ordinary := report["ordinary"]:
        lines += [f"ordinary dialogues, {name}: {row['false_alarms_per_hundred_calls']:.1f} of 100 calls raise a false "
                  f"alarm ({row['calls']} calls)" for name, row in
                  {**ordinary["by_source"], "all": ordinary["all"]}.items()]
        if kinds := most_alarmed(ordinary["by_category"]):
            lines.append(f"most of these alarms are of {kinds}")
    if report["probes"] and report["recall"]:  # or there is none to lose
        probes = {name: probe for name, probe in report["probes"].items() if name not in NOT_NORMALISED}
        name, probe = min(probes.items(), key=lambda item: item[1]["change"]["recall"]["value"] or 0.0)
        lines.append(f"of {len(probes)} probes {name} costs the most recall: "
                     f"{figure_text(report['recall'])} becomes {figure_text(probe['recall'])}")
    if (shared := report["overlap_with_train"]) and shared["rows_sharing_a_line"]:
        lines.append(f"seen in training: {shared['rows_sharing_a_line']:.1%} of rows share a whole line with train")
    lines.append(f"threshold {report['threshold']:.4g}, calibration error {report['calibration']['after']['ece']:.4f}, "
                 f"{report['rows_per_second']:.0f} rows a second")
    found, judged = report["calibration"]["fitted_on"] or {}, report["provenance"]
    if {of["sha256"] for of in (found.get("ordinary") or {}).get("files", ())} & {
            of["sha256"] for of in judged["ordinary"]}:
        lines.append("the bound on false alarms was found on these very ordinary calls; judge it on others")
    if found.get("data", {}).get("sha256") == judged["data"]["sha256"]:
        lines.append("probabilities and threshold were found on these very dialogues; judge them on others")
    if (judged["train_data"] or {}).get("sha256") == judged["data"]["sha256"]:
        lines.append("the model was trained on these very dialogues; judge it on others, as test.jsonl")
    failed = {name: why for name, why in report["not_made"].items() if why != NOT_ASKED}
    lines += [f"not made: {name}: {why}" for name, why in failed.items()
              if name not in ("untuned", "calls", "lines", "ordinary", "threshold of majority")]
    if len(failed) < len(report["not_made"]):
        lines.append("probes, baselines, label audit and overlap with train: --full")
    return lines

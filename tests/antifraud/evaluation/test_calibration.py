"""Calibration: temperature and bias are found again, thresholds keep their promise, and a checkpoint keeps both."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import make_records
from scipy.special import expit, logit

import evaluate as evaluate_module
from antifraud.checkpoint import Decision, require_complete
from antifraud.evaluation.calibration import (
    at_prevalence,
    bounded_threshold,
    calibrate,
    calibrate_checkpoint,
    calibrated,
    choose_threshold,
    platt_scaling,
    quiet_above,
    reliability,
)
from antifraud.evaluation.report import summary
from antifraud.evaluation.scoring import score_prompts
from antifraud.serving.app import score_lines
from antifraud.serving.predict import predict_file
from data.files import DataError
from data.prompt import PromptEncoder
from data.records import read_records, write_records
from evaluate import evaluate, load_model, predict

TRUE = np.array([True, True, False, True, False, False])
SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.1])

# ---------------------------------------------------------------------------------- scores become probabilities


def test_a_temperature_divides_the_log_odds_and_a_bias_is_added():
    halved = Decision(temperature=2.0)
    np.testing.assert_allclose(calibrated(np.array([0.9, 0.5, 0.1]), halved), [0.75, 0.5, 0.25])  # odds of 9 become 3
    tripled = Decision(bias=float(np.log(3)))
    np.testing.assert_allclose(calibrated(np.array([0.9, 0.5, 0.1]), tripled), [27 / 28, 0.75, 0.25])
    assert calibrated(SCORES, Decision()) is SCORES
    assert calibrated(np.array([0.0, 1.0]), Decision(temperature=2.0, bias=-1.0)).tolist() == [0.0, 1.0]


def test_the_temperature_and_the_bias_that_spoilt_the_probabilities_are_found():
    generator = np.random.default_rng(0)
    right = generator.uniform(0.02, 0.98, 20_000)
    y_true = generator.random(20_000) < right
    for temperature, bias in (1.0, 0.0), (3.0, 0.0), (0.5, 0.0), (1.0, 2.0), (2.0, -1.5):
        spoilt = expit((logit(right) - bias) * temperature)
        assert platt_scaling(y_true, spoilt) == pytest.approx((temperature, bias), abs=0.15)


def test_a_few_rows_move_the_bias_less_than_many_of_the_same():
    y_true, scores = [True, True, False, True], np.array([0.3, 0.2, 0.25, 0.1])
    few, many = platt_scaling(y_true, scores)[1], platt_scaling(y_true * 100, np.tile(scores, 100))[1]
    assert 0 < few < 0.8 * many


def test_scores_of_exactly_zero_and_one_are_no_obstacle():
    assert 1 < platt_scaling([True, False, True, False], np.array([1.0, 0.0, 0.0, 0.3]))[0] <= 20


@pytest.mark.parametrize("bias", [0, 2])
def test_scores_that_tell_all_apart_do_not_teach_how_sure_to_be(bias):
    log_odds = np.append(np.linspace(0.5, 4, 500), np.linspace(-0.5, -4, 500))
    found = platt_scaling([True] * 500 + [False] * 500, expit(log_odds - bias))
    assert found[0] == 1.0 and found == pytest.approx((1.0, bias), abs=0.05)


def test_one_label_teaches_nothing():
    for y_true in ([True, True], [False, False]):
        with pytest.raises(DataError, match="both labels"):
            platt_scaling(y_true, np.array([0.7, 0.2]))


def test_the_calibration_error_by_hand():
    found = reliability([True, True, False, True], np.array([0.95, 0.91, 0.93, 0.21]))
    assert [(row["from"], row["n"]) for row in found["bins"]] == [(0.2, 1), (0.9, 3)]
    assert found["bins"][1]["mean_probability"] == pytest.approx(0.93)
    assert found["ece"] == pytest.approx((1 * abs(1 - 0.21) + 3 * abs(2 / 3 - 0.93)) / 4)
    assert reliability([True], np.array([1.0]))["bins"] == [
        {"from": 0.9, "to": 1.0, "n": 1, "mean_probability": 1.0, "fraud_share": 1.0}]


# ---------------------------------------------------------------------------------------------- the threshold


@pytest.mark.parametrize("target, threshold", [
    ({"wanted_precision": 1.0}, 0.75),  # between 0.7, not fraud, and 0.8
    ({"wanted_precision": 0.75}, 0.5),  # three of the four above it are fraud
    ({"wanted_precision": 0.5}, 0.05),  # everything is called fraud
    ({"wanted_recall": 1.0}, 0.5),
    ({"wanted_recall": 0.6}, 0.75),
    ({"cost_ratio": 0.5}, 0.75),  # missing 0.6 costs a half, finding it one false alarm
    ({"cost_ratio": 2.0}, 0.5),
    ({"best_f1": True}, 0.5),  # three of four found right, none missed: 6/7; at 0.75 two of three found: 4/5
])
def test_a_threshold_does_what_was_asked_for_by_hand(target, threshold):
    assert choose_threshold(TRUE, SCORES, **target) == pytest.approx(threshold)


@pytest.mark.parametrize("frauds_at, threshold", [
    ({0.3: 9, 0.8: 991}, 0.55),  # nine missed: F1 is 1982 / 1991, within 0.005 of the best, and 0.55 is nearer to half
    ({0.3: 11, 0.8: 989}, 0.2),  # eleven missed cost more
    ({0.3: 4, 0.6: 4, 0.8: 992}, 0.45),  # 0.7 is as good, and further away
])
def test_where_f1_is_flat_the_threshold_is_near_half_of_it_by_hand(frauds_at, threshold):
    scores = np.repeat([0.1, *frauds_at], [1000, *frauds_at.values()])
    assert choose_threshold(scores > 0.1, scores, best_f1=True) == pytest.approx(threshold)


def test_equal_scores_stand_or_fall_together():
    assert choose_threshold([True, False, True], np.array([0.8, 0.8, 0.9]), wanted_precision=1.0) == pytest.approx(0.85)
    assert choose_threshold([True, False, True], np.array([0.8, 0.8, 0.9]), wanted_recall=1.0) == pytest.approx(0.4)


def test_a_precision_out_of_reach_says_what_is_in_reach():
    with pytest.raises(DataError, match="precision of 0.9 .* 0.6667"):
        choose_threshold([False, True, True], np.array([0.9, 0.8, 0.7]), wanted_precision=0.9)


def ordinary_calls(**scores):
    """(records, scores) of calls of one segment each, by source."""
    records = [{"input": "甲: 您好", "label": False, "case": f"{source}/{number}", "source": source}
               for source, of_source in scores.items() for number, _ in enumerate(of_source)]
    return records, np.array([score for of_source in scores.values() for score in of_source])


def test_ordinary_calls_say_what_a_threshold_must_exceed():
    hundred = np.arange(100) / 100
    assert quiet_above(*ordinary_calls(chat=hundred), 2) == 0.97  # 0.98 and 0.99 may alarm
    assert quiet_above(*ordinary_calls(chat=hundred), 7) == 0.92
    assert quiet_above(*ordinary_calls(chat=hundred), 0.9) == 0.99  # 0.9 of a call is none
    assert quiet_above(*ordinary_calls(chat=hundred), 100) == -np.inf
    assert quiet_above([], np.array([]), 2) == -np.inf
    # A call of two segments alarms by the higher one: of the calls 0.3, 0.8 and 0.9 one may.
    records = [{"case": case} for case in "aabbcc"]
    assert quiet_above(records, np.array([0.1, 0.8, 0.3, 0.2, 0.9, 0.9]), 34) == 0.8


def test_the_worst_source_of_ordinary_calls_counts_unless_it_is_small():
    quiet = np.arange(180) / 1000  # with twenty others two hundred, of which 2 % are four
    assert quiet_above(*ordinary_calls(chat=quiet, bank=[0.9] + [0.2] * 19), 2) == 0.9  # none of twenty may alarm
    assert quiet_above(*ordinary_calls(chat=quiet, bank=[0.9] + [0.2] * 18), 2) == 0.2  # 3 of 199, of 0.9 and 0.2


@pytest.mark.parametrize("target, above, threshold", [
    ({"best_f1": True}, 0.3, 0.5),  # what is chosen anyhow is higher: it stays where it is
    ({"best_f1": True}, 0.62, 0.75),  # above 0.66 F1 is 4/6, above 0.75 it is 4/5
    ({"best_f1": True}, 0.78, 0.79),  # halfway between 0.78 and the next score
    ({"wanted_precision": 0.5}, 0.65, 0.675),
    ({"wanted_recall": 0.6}, 0.5, 0.75),
    ({"cost_ratio": 2.0}, 0.55, 0.575),
])
def test_a_bounded_target_is_sought_above_the_bound_by_hand(target, above, threshold):
    assert bounded_threshold(TRUE, SCORES, above, **target) == pytest.approx(threshold)


def test_a_target_that_the_bound_leaves_out_of_reach_says_what_is_left():
    with pytest.raises(DataError, match="recall of 1.0 .* 0.6667"):
        bounded_threshold(TRUE, SCORES, 0.65, wanted_recall=1.0)
    with pytest.raises(DataError, match="precision of 0.7 .* 0.6667"):  # 0.75 below the bound
        bounded_threshold([False, True, True, True], SCORES[:4], 0.65, wanted_precision=0.7)
    with pytest.raises(DataError, match=" 0.9"):
        bounded_threshold(TRUE, SCORES, 0.9, best_f1=True)


def test_a_calibration_keeps_the_bound_after_its_scaling_and_says_what_it_did():
    y_true, scores = np.append(TRUE, [True, False]), np.append(SCORES, [0.3, 0.65])  # F1 is highest above 0.1
    records, ordinary_scores = ordinary_calls(chat=[0.05] * 48 + [0.72, 0.95], bank=[0.05] * 19)
    for bound, raised in ((2.0, True), (4.0, False)):
        decision, found = calibrate(y_true, scores, Decision(), ordinary=records, ordinary_scores=ordinary_scores,
                                    false_alarms=bound, best_f1=True)
        assert found["temperature"] > 1.2 and found["ordinary"]["moved_threshold"] is raised
        assert found["ordinary"]["at_most_per_hundred_calls"] == bound
        alarmed = found["ordinary"]["all"]["alarmed_calls"], found["ordinary"]["by_source"]["chat"]["alarmed_calls"]
        assert alarmed == ((1, 1) if raised else (2, 2)) and found["ordinary"]["by_source"]["bank"]["calls"] == 19
        assert ((calibrated(ordinary_scores, decision) >= decision.threshold).sum()) == alarmed[0]
    with pytest.raises(DataError, match="needs a target"):
        calibrate(y_true, scores, Decision(), ordinary=records, ordinary_scores=ordinary_scores)


@pytest.mark.parametrize("misspelt", [{"bestf1": True}, {"wanted_precison": None}])
def test_a_keyword_that_is_no_target_is_refused_before_anything_is_read(misspelt):
    with pytest.raises(TypeError, match=f"'{[*misspelt][0]}' is no target; .*best_f1"):
        calibrate(TRUE, SCORES, Decision(), **misspelt)
    with pytest.raises(TypeError, match="is no target"):
        calibrate_checkpoint("no model", "no checkpoint", "no data", **misspelt)


def test_two_targets_are_refused_and_not_the_second_forgotten():
    two = {"best_f1": True, "wanted_precision": 0.9}
    for refused in (lambda: choose_threshold(TRUE, SCORES, **two), lambda: calibrate(TRUE, SCORES, Decision(), **two),
                    lambda: calibrate_checkpoint("no model", "no checkpoint", "no data", **two)):
        with pytest.raises(TypeError, match="one target .* not .*best_f1"):
            refused()
    assert choose_threshold(TRUE, SCORES, best_f1=False, wanted_precision=1.0) == pytest.approx(0.75)
    with pytest.raises(TypeError, match="no target; .*best_f1"):
        choose_threshold(TRUE, SCORES)


@pytest.mark.parametrize("label", [True, False])
def test_eval_data_of_one_label_is_refused_before_a_model_is_loaded(tmp_path, label):
    write_records(tmp_path / "eval.jsonl", [{"input": "甲: 好", "label": label}] * 2)
    with pytest.raises(DataError, match=f"eval.jsonl: all 2 records .*{str(label).lower()}; .* both labels"):
        calibrate_checkpoint("no model", "no checkpoint", str(tmp_path / "eval.jsonl"), best_f1=True)


def test_what_few_rows_teach_is_called_chance(base, checkpoint, noisy_eval_file, tmp_path, capsys):
    def warned(frauds, others):
        rows = read_records(noisy_eval_file)
        of = {label: [row for row in rows if row["label"] is label] * 30 for label in (True, False)}
        write_records(tmp_path / "eval.jsonl", of[True][:frauds] + of[False][:others])
        calibrate_checkpoint(base, str(checkpoint), str(tmp_path / "eval.jsonl"), "cpu", progress=False)
        said = capsys.readouterr().err  # no threshold was sought
        return f"{frauds} fraud and {others} other records; with fewer than 30 of either, what is found is" in said

    assert warned(3, 40) and warned(40, 29) and not warned(30, 30)


def test_without_a_target_the_threshold_moves_with_the_probabilities_and_no_answer_changes():
    y_true, scores = np.append(TRUE, [True, False]), np.append(SCORES, [0.02, 0.97])
    before = Decision(threshold=0.65)
    decision, found = calibrate(y_true, scores, before)
    assert decision.temperature == found["temperature"] > 1.5 and decision.bias == found["bias"] != 0
    assert ((calibrated(scores, decision) >= decision.threshold) == (scores >= 0.65)).all()
    again, _ = calibrate(y_true, scores, decision)  # from one scaling to the same: nothing moves
    assert again.threshold == pytest.approx(decision.threshold)
    assert found["ece_after"] < found["ece_before"]


# ---------------------------------------------------------------------------------------------- where fraud is rare


def test_precision_where_fraud_is_rare_by_hand():
    """Recall 0.98 and 2 % false alarms: a precision of 0.33 at 1 %, 29.6 alarms in a thousand calls."""
    y_true = [True] * 100 + [False] * 100
    y_pred = [True] * 98 + [False] * 2 + [True] * 2 + [False] * 98
    found = at_prevalence(y_true, y_pred)
    assert found["false_positive_rate"] == 0.02
    one_percent, one_in_thousand = found["prevalences"]
    assert one_percent["precision"] == pytest.approx(0.0098 / (0.0098 + 0.0198))
    assert one_percent["alarms_per_thousand"] == pytest.approx(29.6)
    assert one_percent["false_alarms_per_thousand"] == pytest.approx(19.8)
    assert one_in_thousand["precision"] == pytest.approx(0.00098 / (0.00098 + 0.01998))
    for row in found["prevalences"]:
        low, high = row["precision_interval"]
        assert low < row["precision"] < high


def test_no_false_alarm_among_few_dialogues_is_no_perfect_precision():
    found = at_prevalence([True] * 50 + [False] * 50, [True] * 45 + [False] * 55)
    row = found["prevalences"][0]
    assert row["precision"] == 1.0
    # Wilson's upper end of 0 in 50 is z^2 / (50 + z^2) = 0.0713; recall at most about 0.97
    low, high = row["precision_interval"]
    assert high == pytest.approx(1.0) and 0.08 < low < 0.13


def test_without_non_fraud_dialogues_nothing_is_said_of_false_alarms():
    found = at_prevalence([True, True], [True, False])
    assert found["false_positive_rate"] is None and found["false_positive_rate_interval"] is None
    assert found["prevalences"][0]["precision"] is None and found["prevalences"][0]["precision_interval"] is None
    json.dumps(found, allow_nan=False)


# ---------------------------------------------------------------------------------------------- the checkpoint


@pytest.fixture(scope="module")
def noisy_eval_file(tmp_path_factory) -> str:
    """Dialogues of which some have the wrong label, so that there is an error to learn from."""
    rows = make_records(40, first_case=300)
    for row in rows[::10]:
        row["label"] = not row["label"]
    path = tmp_path_factory.mktemp("noisy") / "eval.jsonl"
    write_records(path, rows)
    return str(path)


def test_a_calibrated_checkpoint_is_intact_and_all_that_score_apply_it(base, checkpoint, noisy_eval_file, eval_file,
                                                                       tmp_path):
    before = evaluate(base, str(checkpoint), noisy_eval_file, "cpu", progress=False)
    kept = json.loads((checkpoint / "fraud_task.json").read_text())
    found = calibrate_checkpoint(base, str(checkpoint), noisy_eval_file, "cpu", progress=False, wanted_recall=0.8)
    assert found["temperature"] > 1 and found["target"] == {"wanted_recall": 0.8} and found["recall"] >= 0.8
    require_complete(checkpoint)
    changed = json.loads((checkpoint / "fraud_task.json").read_text())
    assert {key for key in changed if changed[key] != kept[key]} == {"decision", "calibration"} and changed["files"]

    model, tokenizer = load_model(base, str(checkpoint), "cpu")
    task, decision = model.lineage.task, model.lineage.decision
    assert (decision.temperature, decision.bias, decision.threshold) == tuple(
        found[name] for name in ("temperature", "bias", "threshold"))
    report = evaluate_module.evaluate_with_model(model, tokenizer, noisy_eval_file, "cpu", full=True, progress=False)
    assert report["threshold"] == found["threshold"] and report["bias"] == found["bias"] != 0
    assert report["recall"] == found["recall"] and report["average_precision"] == before["average_precision"]
    assert report["calibration"]["before"] == before["calibration"]["after"]
    assert report["calibration"]["after"]["ece"] == pytest.approx(found["ece_after"]) != found["ece_before"]
    assert report["calibration"]["fitted_on"]["data"] == report["provenance"]["data"]
    assert "probabilities and threshold were found on these very dialogues; judge them on others" in summary(report)
    assert report["probes"]["speakers_renamed"]["recall"] == report["recall"]

    predict_file(model, tokenizer, eval_file, tmp_path / "out.jsonl", progress=False)
    encoder = PromptEncoder(tokenizer, task)
    first = json.loads(Path(eval_file).read_text(encoding="utf-8").split("\n")[0])
    raw = score_prompts(model, encoder, encoder.prompts([first["input"]]))
    row = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert row["probability"] == pytest.approx(expit(logit(raw[0]) / found["temperature"] + found["bias"]), abs=2e-6)
    assert row["is_fraud"] == (row["probability"] >= found["threshold"])
    assert predict(model, tokenizer, [first["input"]])[0] == pytest.approx(row["probability"], abs=2e-6)
    assert score_lines(model, tokenizer, first["input"])[-1].probability == pytest.approx(row["probability"], abs=1e-4)


def test_the_command_calibrates_and_says_what_it_found(base, checkpoint, noisy_eval_file, tmp_path, capsys):
    output, ordinary = tmp_path / "calibration.json", tmp_path / "ordinary_eval.jsonl"
    write_records(ordinary, [{**row, "label": False, "source": "shop"} for row in make_records(30, first_case=500)])
    calibrating = ["--model", base, "--checkpoint", str(checkpoint), "--data", noisy_eval_file, "--device", "cpu",
                   "--calibrate", "--cost-ratio", "3", "--output", str(output)]
    assert evaluate_module.main(calibrating) == 0
    found = json.loads(output.read_text())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"temperature {found['temperature']:.4f}, bias {found['bias']:.4f}: calibration ")
    assert printed[1].startswith(f"threshold {found['threshold']:.6f}: precision ")
    assert load_model(base, str(checkpoint), "cpu")[0].lineage.decision.threshold == found["threshold"]

    # Of these calls half are scams: a threshold that few of them exceed is higher than the one above.
    assert evaluate_module.main([*calibrating, "--ordinary", str(ordinary), "--false-alarms", "20"]) == 0
    bounded = json.loads(output.read_text())
    calls = bounded["ordinary"]
    assert calls["moved_threshold"] and bounded["threshold"] > found["threshold"]
    assert calls["all"]["alarmed_calls"] <= 0.2 * calls["all"]["calls"] and calls["files"][0]["rows"] == 30
    require_complete(checkpoint)
    kept = json.loads((checkpoint / "fraud_task.json").read_text())
    assert kept["calibration"]["ordinary"] == calls and str(tmp_path) not in json.dumps(kept)

    judging = [*calibrating[:8], "--output", str(tmp_path / "report.json")]
    for file, same in ((ordinary, True), (tmp_path / "others.jsonl", False)):
        write_records(tmp_path / "others.jsonl", [{"input": "A: 好", "label": False}])
        assert evaluate_module.main([*judging, "--ordinary", str(file)]) == 0
        assert ("the bound on false alarms was found on these very ordinary calls" in capsys.readouterr().out) == same


def test_a_threshold_that_no_fraud_reaches_is_warned_of(base, checkpoint, tmp_path, capsys):
    texts = [row["input"] for row in make_records(8, first_case=700)]
    scores = predict(*load_model(base, str(checkpoint), "cpu"), texts)
    low, second, highest = (texts[place] for place in np.argsort(scores)[-3:])
    write_records(tmp_path / "eval.jsonl", [{"input": highest, "label": False}, {"input": second, "label": True},
                                            {"input": low, "label": False}])
    write_records(tmp_path / "ordinary.jsonl", [{"input": second, "label": False}])
    calibrate_checkpoint(base, str(checkpoint), str(tmp_path / "eval.jsonl"), "cpu", progress=False, best_f1=True,
                         ordinary=[str(tmp_path / "ordinary.jsonl")], false_alarms=0)
    assert "no fraud in" in capsys.readouterr().err


def test_what_it_was_trained_on_and_an_unreachable_target_are_refused_and_change_nothing(base, checkpoint, train_file,
                                                                                      tmp_path, capsys):
    kept = (checkpoint / "fraud_task.json").read_bytes()

    def attempt(data, *options):
        code = evaluate_module.main(["--model", base, "--checkpoint", str(checkpoint), "--data", str(data), "--device",
                                     "cpu", "--calibrate", *options])
        assert code == 2 and (checkpoint / "fraud_task.json").read_bytes() == kept
        return capsys.readouterr().err.splitlines()[-1]

    assert attempt(train_file).startswith(f"{train_file}: ")
    wrong = [{**row, "label": not row["label"]} for row in make_records(20)]
    write_records(tmp_path / "wrong.jsonl", wrong)
    assert attempt(tmp_path / "wrong.jsonl", "--wanted-precision", "0.99").startswith(
        f"{tmp_path}/wrong.jsonl: ")


@pytest.mark.parametrize("options, message", [
    (["--calibrate"], "--calibrate needs --data and --checkpoint"),
    (["--wanted-recall", "0.9"], "belongs to --calibrate"),
    (["--calibrate", "--wanted-recall", "0.9", "--cost-ratio", "2"], "not allowed with"),
    (["--calibrate", "--checkpoint", "c", "--best-f1", "--false-alarms", "2"], "needs --ordinary"),
    (["--calibrate", "--checkpoint", "c", "--ordinary", "o", "--false-alarms", "2"], "with a target"),
    (["--calibrate", "--checkpoint", "c", "--best-f1", "--ordinary", "o"], "needs --false-alarms"),
    (["--ordinary", "o", "--false-alarms", "2"], "belongs to --calibrate"),
    (["--calibrate", "--best-f1", "--false-alarms", "101"], "from 0 to 100"),
    (["--calibrate", "--wanted-recall", "1.5"], "must be above 0 and at most 1"),
    (["--calibrate", "--cost-ratio", "0"], "must be above 0"),
])
def test_options_that_do_not_go_together_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        evaluate_module.main(["--model", "m", "--data", "d", *options])
    assert message in capsys.readouterr().err

"""The tables of README and docs are what results/ says, and so is what their prose claims of them."""

import functools
import json
import re
import statistics

import pytest

from benchmarks import tables
from data.files import DataError


def test_the_pages_show_the_committed_results():
    for path in tables.pages():
        page = path.read_text(encoding="utf-8")
        assert tables.with_tables(page, path.name) == page


def test_a_table_that_was_edited_by_hand_is_made_anew_and_an_unknown_one_is_refused():
    edited = "before\n<!-- table: training -->\n| made up |\n<!-- end -->\nafter\n"
    made = tables.with_tables(edited)
    assert "made up" not in made and made.startswith("before\n") and made.endswith("<!-- end -->\nafter\n")
    assert tables.with_tables("no marks\n") == "no marks\n"
    with pytest.raises(DataError):
        tables.with_tables("<!-- table: weather -->\n<!-- end -->", "README.md")


# --------------------------------------------------------------------- what prose says of them, <!-- claim: NAME -->


def judged_on(name, *keys):
    """What the reports on a set have under `keys`, of all models."""
    return [found for reports in tables.reports_on(name).values() for found in tables.under(reports, *keys)]


held_out = functools.partial(judged_on, "held_out")


def minus_tfidf(reports, figure="f1", key="tfidf"):
    return [found[f"model_{figure}_minus_this"] for found in tables.baseline(reports, key)]


def alarms_of(source, *keys):
    return [row["false_alarms_per_hundred_calls"] for row in held_out("ordinary", *keys, "by_source", source)]


def recall_by_call(alarms, *keys):
    return statistics.fmean(row["recall"] for row in held_out("calls", *keys, "at_false_alarms_per_hundred", alarms))


def warned(*keys, at):
    """Of each seed the recall of the early warning, at the first or second wanted rate of false alarms."""
    return [found[at]["test"]["recall"] for found in judged_on("early_warning", *keys, "at")]


def ends(values):
    """The lowest and the highest, rounded."""
    return round(min(values)), round(max(values))


def best_f1(name):
    """Of each seed with the best of the report's thresholds, the lowest and the highest."""
    best = [max(row["f1"] for row in thresholds) for thresholds in judged_on(name, "thresholds")]
    return f"{min(best):.3f}", f"{max(best):.3f}"


def result(name):
    return json.loads((tables.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def ablations():
    return result("ablations")["rows"]


def ablation(variant):
    return next(row for row in ablations() if row["variant"] == variant)


def gpus(layout):
    return result("speed/several_gpus")["layouts"][layout]


def rate(recipe):
    return result("speed/training")["recipes"][recipe]["samples_per_second"]


def scored(method):
    return result("speed/scoring")["methods"][method]["rows_per_second"]


def peak(recipe):
    return result("speed/training")["recipes"][recipe]["peak_allocated_gib"]


def weights(quantization):
    return result("speed/steps")["quantization"][quantization]["weights_gib"]


PEERS = ("tfidf", "tfidf_line_labels")
PREAMBLES = ("benign_preamble", "ordinary_preamble")
INJECTIONS = ("injected_command", "injected_tokens")
LIBRARIES = ("unsloth", "unsloth_no_checkpointing", "liger", "trl")
CLAIMS = {
    "one_rule_for_thresholds": lambda: all(
        found["at_threshold"] for name in tables.SETS for key in tables.PEERS
        for found in judged_on(name, "baselines", key)),
    "eval0819_shares_lines": lambda: all(
        shared > 0.5 for shared in judged_on("eval0819", "overlap_with_train", "rows_sharing_a_line")),
    "close_on_eval0819": lambda: all(
        abs(found["value"]) < 0.01 for key in PEERS
        for found in minus_tfidf(judged_on("eval0819"), "average_precision", key)),
    "onset_ranks_best": lambda: all(
        found["value"] > 0 for key in tables.PEERS for figure in ("f1", "average_precision")
        for found in minus_tfidf(judged_on("eval0819_onset"), figure, key)) and all(
        found["at_threshold"]["model_f1_minus_this"]["value"] > 0 for key in tables.PEERS
        for found in judged_on("eval0819_onset", "baselines", key)),
    "soup_ahead_on_eval": lambda: all(
        ablation("soup-of-3")[figure] > max(row[figure] for row in ablations() if row["variant"] != "soup-of-3")
        for figure in ("f1", "average_precision")),
    "others_near_the_recipe": lambda: all(
        abs(row[figure] - ablation("base")[figure]) < 0.01 for row in ablations() if row["variant"] != "soup-of-3"
        for figure in ("f1", "average_precision") if (row["variant"], figure) != ("rank-64", "f1")),
    "two_gpus_twice_the_rows": lambda: all(
        1.9 < gpus("ddp")[figure] / gpus("one")[figure] < 2.3 for figure in ("samples_per_second",
                                                                            "predicted_per_second")),
    "fsdp_learns_as_ddp": lambda: all(
        abs(gpus(layout)["losses"][0] - gpus("one")["losses"][0]) < 1e-3 and
        gpus(layout)["largest_loss_difference"] < 0.03 for layout in ("ddp", "fsdp")),
    "onset_threshold_is_near": lambda: best_f1("eval0819_onset") == ("0.962", "0.968"),
    "rows_resampled_on_eval0819": lambda: all(
        resampled == ("rows" if name.startswith("eval0819") else "dialogues")
        for name in tables.SETS for resampled in judged_on(name, "intervals", "resampled")),
    "no_line_to_remember": lambda: all(
        shared["rows_sharing_a_line"] == shared["near_duplicates"] == 0
        and 0.06 < shared["rows_with_half_their_runs"] < 0.08
        for shared in judged_on("eval0819_apart", "overlap_with_train")),
    "encoder_level_on_new_dialogues_in_one": lambda: [
        found["interval"][0] <= 0 <= found["interval"][1]
        for found in minus_tfidf(judged_on("eval0819_apart"), "average_precision", "encoder")] == [False, True],
    "level_without_bound": lambda: all(
        least < found["value"] < most for least, most, keys, reports in (
            (-0.0125, 0.0125, tables.PEERS, held_out()), (-1, 0, PEERS, judged_on("eval0819")),
            (-1, 0, tables.PEERS, judged_on("eval0819_apart")))
        for key in keys for found in tables.under(reports, "baselines", key, "model_f1_minus_this")
    ) and ends([rate for key in tables.PEERS for rate in alarms_of("sample_ordinary_judge", "baselines", key)]
               ) == (21, 38),
    "ranks_best": lambda: all(
        found["value"] > 0 for key in tables.PEERS for found in minus_tfidf(held_out(), "average_precision", key)
    ) and [sum(found["interval"][0] > 0 for found in minus_tfidf(held_out(), "average_precision", key))
           for key in PEERS] == [3, 2],
    "ahead_on_new_dialogues": lambda: all(
        found["interval"][0] > 0 for key in PEERS
        for found in minus_tfidf(judged_on("eval0819_apart"), "average_precision", key)) and [
        [found["at_threshold"]["model_f1_minus_this"]["interval"][0] > 0
         for found in judged_on("eval0819_apart", "baselines", key)] for key in PEERS] == [[True, False]] * 2,
    "level_by_call": lambda: all(
        abs(recall_by_call(alarms) - recall_by_call(alarms, "baselines", key)) < 0.0135
        for alarms in ("1", "5") for key in PEERS),
    "warns_of_as_many": lambda: all(
        abs(statistics.fmean(warned(at=at)) - statistics.fmean(warned("tfidf", at=at))) < 0.01 for at in (0, 1)),
    "encoder_warns_of_fewer": lambda: all(
        found[at]["test"]["recall"] < min(recalls[seed] for recalls in (warned(at=at), warned("tfidf", at=at)))
        and found[at]["test"]["share_of_dialogue"][1] > other[at]["test"]["share_of_dialogue"][1]
        for at in (0, 1) for seed, (found, other) in enumerate(zip(
            judged_on("early_warning", "encoders", "encoder", "at"), judged_on("early_warning", "tfidf", "at"),
            strict=True))),
    "three_lines_warn_at_one": lambda: all(
        (found[0]["decision"]["line_weight"], found[0]["decision"]["top_lines"]) == (0.5, 3)
        for found in judged_on("early_warning", "at")),
    "warns_sooner_at_five": lambda: all(
        found[1]["test"]["share_of_dialogue"][1] < other[1]["test"]["share_of_dialogue"][1] for found, other in
        zip(judged_on("early_warning", "at"), judged_on("early_warning", "tfidf", "at"), strict=True)),
    "level_in_average_precision_by_call": lambda: all(
        found["interval"][0] <= 0 <= found["interval"][1] for key in tables.PEERS
        for found in held_out("calls", "baselines", key, "model_average_precision_minus_this")),
    "few_calls_alarm": lambda: all(
        ends([row["fp"] for row in found]) == extremes and {row["fp"] + row["tn"] for row in found} == {13}
        for extremes, found in (((5, 10), held_out("calls")), ((7, 11), held_out("calls", "baselines", "tfidf")))),
    "meetings_hardly_alarm": lambda: all(
        row["fp"] < 0.02 * row["n"] for row in held_out("by_category", "meeting_label_false")),
    "goal_met_in_chats": lambda: max(alarms_of("kdconv")) <= 2,
    "two_to_eight": lambda: all(2 <= round(alarms) <= 8 for alarms in alarms_of("sample_ordinary_judge")),
    "goal_met_in_two": lambda: sum(alarms <= 5 for alarms in alarms_of("sample_ordinary_judge")) == 2,
    "friends_alarm_in_seed_0": lambda: sum(
        held_out("ordinary", "by_category")[0][kind]["alarmed_calls"] for kind in ("朋友聊理财", "朋友闲聊")
    ) > held_out("ordinary", "by_source", "sample_ordinary_judge")[0]["alarmed_calls"] / 2,
    "bound_moves_two": lambda: sorted(held_out("calibration", "fitted_on", "ordinary", "moved_threshold")) == [
        False, True, True],
    "peers_raise_more": lambda: all(
        statistics.fmean(alarms_of("sample_ordinary_judge", "baselines", key, "at_threshold"))
        > statistics.fmean(alarms_of("sample_ordinary_judge")) + 1 for key in tables.PEERS),
    "probabilities_hold": lambda: round(max(held_out("calibration", "after", "ece")), 3) == 0.024 and all(
        0.031 <= round(error, 3) <= 0.039 for error in judged_on("eval0819", "calibration", "after", "ece")
    ) and [round(max(judged_on(name, "calibration", "after", "ece")), 3) for name in ("held_out_calls", "scams_unseen")
           ] == [0.037, 0.108],
    "alarms_before_fraud": lambda: all(
        0.23 < ours["alarmed_before_any_fraud_line"] / (ours["recall"] * 180) < 1 / 3
        and ours["alarmed_before_any_fraud_line"] > theirs["alarmed_before_any_fraud_line"] for ours, theirs in (
            (found[1]["test"], other[1]["test"]) for found, other in zip(
                judged_on("early_warning", "at"), judged_on("early_warning", "tfidf", "at"), strict=True))),
    "renaming_changes_nothing": lambda: all(
        row["changed_rows"] == row["max_probability_change"] == 0 for row in held_out("probes", "speakers_renamed")),
    "little_hides": lambda: all(
        round(min(probes[name]["change"]["recall"]["value"] for probes in judged_on(judged, "probes")
                  for name in names), 3) == lowest
        for judged, names, lowest in (("held_out", PREAMBLES, -0.016), ("held_out", INJECTIONS, -0.041),
                                      ("held_out_calls", PREAMBLES + INJECTIONS, -0.017))),
    "seed_2_misses_the_goal": lambda: [
        (seed, name) for seed, probes in enumerate(held_out("probes")) for name, probe in probes.items()
        if probe["change"]["recall"]["value"] < -0.03] == [
        (2, name) for name in INJECTIONS],
    "encoder_holds": lambda: all(
        change["recall"]["value"] > -0.01 for probes in held_out("probes") for probe in probes.values()
        if (change := probe["change_of_encoders"]["encoder"]) is not None),
    "false_alarms_come_early": lambda: all(
        report["by_position"]["beginning"]["fp"] > report["fp"] / 2 for report in held_out()),
    "names_match_the_article": lambda: all(
        found["f1"] > tables.rates(list(tables.ARTICLE.values()))["f1"]
        for found in judged_on("eval0819", "baselines", "speaker_names")),
    "three_lines_win_where_the_bound_bites": lambda: all(
        max(found["line_rules"], key=lambda row: row["f1"])["top_lines"] == 3
        for name in ("held_out", "eval0819_apart") for found in judged_on(name, "calibration", "fitted_on")
        if found["ordinary"]["moved_threshold"]) and max(
        row["f1"] - rules[0]["f1"] for _, rules in [judged_on(
            "eval0819_apart", "calibration", "fitted_on", "line_rules")] for row in rules) > 0.05,
    "rules_near_held_out": lambda: all(
        max(rule["f1"] for rule in rules) - min(rule["f1"] for rule in rules) < 0.021
        for rules in judged_on("held_out", "calibration", "fitted_on", "line_rules")),
    "rules_level_without_a_bound": lambda: all(
        max(rule["f1"] for rule in rules) - min(rule["f1"] for rule in rules) < 0.002
        for rules in judged_on("eval0819_onset", "calibration", "fitted_on", "line_rules")),
    "faster_than_peers": lambda: 6 < rate("fast") / rate("unsloth") < 7 and rate("small") > max(map(rate, LIBRARIES)),
    "unsloth_takes_least": lambda: min(result("speed/training")["recipes"], key=peak) == "unsloth",
    "fast_takes_less_than_peers_without_checkpointing": lambda: all(
        peak("fast") < peak(name) and rate("fast") > 3 * rate(name) for name in ("unsloth_no_checkpointing", "liger")),
    "predict_keeps_up": lambda: scored("predict_file") > 0.95 * scored("score_merged_compiled"),
    "fifth_of_memory": lambda: peak("article") > 5 * peak("small"),
    "weights_are_little_of_the_peak": lambda: peak("article") > 8 * (weights("none") - weights("nf4")),
    "logits_are_most_of_a_step": lambda: all(
        row["all_logits"]["peak_gib"] > 2 * row["label_positions"]["peak_gib"]
        for tokens, row in result("speed/steps")["lengths"].items() if 128 <= int(tokens) <= 512),
}
CLAIM = re.compile(r"<!-- claim: (\w+) -->")
MADE = {name: path.name for path in tables.pages() for name in CLAIM.findall(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("claim", MADE)
def test_a_claim_in_the_prose_of_a_page_is_borne_out_by_the_results(claim):
    assert CLAIMS[claim](), f"{MADE[claim]} says so before its mark; it is no longer so"


def test_no_claim_is_checked_that_no_page_makes():
    assert set(CLAIMS) == set(MADE)


# ------------------------------------------------------------------------------------------ reports made by hand


def minus(value, low, high):
    return {"value": value, "interval": [low, high]}


def alarms(per_hundred):
    return {"calls": 100, "alarmed_calls": int(per_hundred), "false_alarms_per_hundred_calls": per_hundred,
            "false_alarms_per_hundred_segments": per_hundred / 4}


def report(f1, ahead, **beside):
    """With TF-IDF 0.1 behind it, `ahead` is by how far the interval goes to either side of that."""
    figures = {"precision": f1, "recall": f1, "f1": f1, "accuracy": f1, "average_precision": f1}
    lead = minus(0.1, 0.1 - ahead, 0.1 + ahead)
    by_call = {"n": 20, "tn": 3, "fp": 1, **figures,
               "at_false_alarms_per_hundred": {"1": {"recall": 0.25}, "5": {"recall": 0.5}}}
    talk = {"by_source": {"kdconv": alarms(100 * (1 - f1))}}
    return {**figures, "threshold": 0.5, "intervals": dict.fromkeys(figures, [f1 - 0.1, 1.0]), "unparsed": 0,
            "ordinary": {**talk, "baselines": {"tfidf": {"at_threshold": {"by_source": {"kdconv": alarms(50)}}}}},
            "calls": {**by_call, "baselines": {"tfidf": {**by_call, "model_average_precision_minus_this": lead}}},
            "baselines": {"tfidf": {**figures, "at_threshold": {"f1": 0.5, "model_f1_minus_this": lead},
                                    "model_f1_minus_this": minus(0.9, 0.9, 0.9),
                                    "model_average_precision_minus_this": minus(-0.1, -0.2, -0.05)}}, **beside}


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Writes the reports of one seed each into a results/ of their own."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def write(name, *reports, model="model"):
        folder = tmp_path / "reports" / name / model
        folder.mkdir(parents=True)
        for seed, found in enumerate(reports):
            (folder / f"seed-{seed}.json").write_text(json.dumps(found))
    return write


def cells(table):
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_where_nothing_is_measured_every_table_says_so_and_none_fails(put, tmp_path):
    for name in tables.TABLES:
        made = tables.with_tables(f"<!-- table: {name} -->\n<!-- end -->")
        assert len(made.splitlines()) >= 3
    assert "results/speed/end_to_end.json" in tables.TABLES["end_to_end"]()
    assert cells(tables.article())[0][2:6] == ["0.978", "0.818", "0.899", "0.891"]


def test_seeds_are_shown_as_their_mean_and_range(put):
    put("held_out", report(0.75, 0.05),
        report(0.875, 0.2, provenance={"top_lines": 3, "line_weight": 0.25}, calibration={"after": {"ece": 0.0625}}))
    tfidf, model = cells(tables.results().partition("\n\n")[0])
    assert tfidf[1:4] == ["character TF-IDF", "2", "0.812 (0.750 to 0.875)"] and tfidf[5] == "0.500"
    assert model[1:] == ["**model**", "2", *["0.812 (0.750 to 0.875)"] * 4]
    assert [[*row[1:5], row[6]] for row in cells(tables.seeds())] == [
        ["0", "0.500", "-", "0.750 (0.650 to 1.000)", "-"],
        ["1", "0.500", "3, 25%", "0.875 (0.775 to 1.000)", "0.062"]]


def test_leads_count_the_seeds_whose_interval_is_clear_of_zero_on_either_side(put):
    put("held_out", report(0.75, 0.05), report(0.875, 0.2))
    assert [row[1:] for row in cells(tables.leads())] == [
        ["character TF-IDF", "+0.100", "1/2", "0/2", "-0.100", "0/2", "2/2"]]
    assert [row[2:4] for row in cells(tables.differences())] == [["0", "+0.100 (+0.050 to +0.150)"],
                                                                 ["1", "+0.100 (-0.100 to +0.300)"]]


def test_a_peer_that_only_some_seeds_were_judged_beside_is_shown_with_their_number(put):
    first, second = report(0.75, 0.05), report(0.875, 0.2)
    first["baselines"]["encoder"] = {**first["baselines"]["tfidf"], "at_threshold": None, "f1": 0.625}
    put("held_out", first, second)
    shown = cells(tables.results().partition("\n\n")[0])[1]
    assert (shown[1], shown[2], shown[5]) == ("fine-tuned encoder", "1", "0.625")


def test_rules_by_which_thresholds_were_found_are_said(put):
    found = {"target": {"best_f1": True}}
    bound = {**found, "ordinary": {"at_most_per_hundred_calls": 2.0}}
    put("held_out", *(report(0.75, 0.05, calibration={"fitted_on": rule}) for rule in (found, bound, bound)))
    said = tables.results().partition("\n\n")[2]
    assert said.count("best F1 on eval") == 2 and said.count("at most 2 alarms") == 1


def test_ordinary_talk_and_calls_are_shown_for_every_classifier(put):
    put("held_out", report(0.75, 0.05), report(0.875, 0.2))
    tfidf, model = cells(tables.ordinary())
    assert tfidf[1:3] == ["100", "character TF-IDF"] and tfidf[3:5] == ["50.0", "12.5"]
    assert model[2:] == ["**model**", "18.8", "4.7", "25.0 (16.9 to 34.7); 12.5 (6.4 to 20.0)"]  # of 25 and 12 in 100
    *rows, empty, counted = tables.calls().splitlines()
    assert rows[2].endswith("| 0.250 | 0.500 | 1/2, 0/2 |") and rows[3].endswith("| 0.250 | 0.500 | - |")
    assert counted.startswith("20 calls") and "4 of them" in counted


def test_the_first_table_has_a_row_for_each_peer_model_and_the_article_and_a_column_for_each_set_judged(put):
    put("held_out", report(0.75, 0.05), report(0.875, 0.2))
    put("eval0819", report(0.5, 0.05), model="other")
    assert [row[1:4] for row in cells(tables.front())] == [
        ["0.812", "0.500", "-"], ["0.812", "0.812", "-"], ["-", "-", "0.500"], ["-", "-", "0.891"]]
    assert len(cells(tables.front_zh())) == 4 and "seeds" not in tables.front_zh()
    assert "dialogues" not in tables.front_zh()


def test_probes_are_shown_beside_what_they_do_to_tfidf_and_the_normaliser_beside_doing_without(put):
    def probe(recall, accuracy, of_others, **more):
        change = {"recall": {"value": recall - 0.75}, "f1": {"value": 0.0}}
        return {"recall": recall, "accuracy": accuracy, "change": change, "change_of_tfidf": of_others and change,
                **{name: {"encoder": of_others and change} for name in more}}

    put("held_out", report(0.75, 0.05, probes={
        "formatting": probe(0.75, 0.75, True), "line_ends_not_normalised": probe(0.5, 0.625, False)}))
    assert cells(tables.probes()) == [["formatting", "0.750", *["+0.000"] * 4],
                                      ["line_ends_not_normalised", "0.500", "-0.250", "+0.000", "-", "-"]]
    assert "encoder" not in tables.probes()  # which was not asked
    assert [row[1:] for row in cells(tables.normaliser())] == [["0.750", "0.750", "0.625"]]
    put("held_out", report(0.75, 0.05, probes={"asr_noise": probe(0.5, 0.75, True, change_of_encoders=True)}),
        model="z")
    assert cells(tables.probes())[-1] == ["asr_noise", "0.500", *["-0.250", "+0.000"] * 3]


def test_early_warning_is_shown_for_each_rate_of_false_alarms(put):
    def at(recall):
        test = {"false_alarms_per_hundred": 2.0, "recall": recall, "share_of_dialogue": [0.1, 0.25, 0.5]}
        return [{"wanted_false_alarms_per_hundred": 1.0, "test": test}]

    put("early_warning", {"at": at(0.75), "tfidf": {"at": at(0.5)}, "encoders": {"encoder": {"at": at(0.625)}}})
    assert cells(tables.early_warning()) == [["1", "character TF-IDF", "1", "2.0", "-", "0.500", "25%"],
                                             ["1", "fine-tuned encoder", "1", "2.0", "-", "0.625", "25%"],
                                             ["1", "**model**", "1", "2.0", "-", "0.750", "25%"]]


def test_a_recipe_that_was_not_measured_is_named_with_the_reason(put, tmp_path):
    (tmp_path / "speed").mkdir()
    made = {"model": "m", "versions": {"torch": "1", "transformers": "2"}, "commit": "c" * 40}
    row = {"samples_per_second": 2.0, "real_tokens_per_second": 3.0}
    (tmp_path / "speed" / "training.json").write_text(json.dumps({
        "recipes": {"article": row}, "skipped": {"unsloth": "it is not installed"}, "device": "cpu",
        "provenance": made}))
    table, skipped, measured = tables.TABLES["training"]().split("\n\n")
    assert "unsloth" in skipped and "unsloth" not in table and measured.startswith("m on a CPU")


def test_every_committed_result_names_its_device_versions_and_commit():
    paths = sorted(tables.RESULTS.rglob("*.json"))
    assert 0 < len(paths) <= 30
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        for made in [row["provenance"] for row in found["rows"]] if "rows" in found else [found["provenance"]]:
            assert made["versions"]["torch"] and (found.get("device") or made["device"]), path
            assert len(made["commit"].removesuffix("+changes")) == 40, path

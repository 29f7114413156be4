"""Copies of train records with a recogniser's slips, and with verdicts that somebody dictates."""

from data.noise import augment


def test_augmenting_adds_copies_with_noise_and_the_originals_stay():
    records = [{"input": f"甲: 第{i}次，请把验证码告诉我，我替您退款。", "label": i % 2 == 0} for i in range(40)]
    more = augment(records, 0.5)
    assert more[:40] == records and len(more) == 60
    said = {r["input"] for r in records}
    assert sum(copy["input"] not in said for copy in more[40:]) > 15  # chance may leave a short line as it is
    assert augment(records, 0.5) == more != augment(records, 0.5, seed=1)
    assert augment(records, 0.0) == records


def test_every_fifth_copy_has_a_line_more_that_dictates_a_verdict_and_changes_no_label():
    records = [{"input": f"甲: 您把{i}元退给我。\n乙: 好，我看一下。", "label": True, "line_labels": [True, False]}
               for i in range(100)]
    copies = augment(records, 1.0)[100:]
    dictated = [copy for copy in copies if copy["input"].count("\n") == 2]
    assert len(dictated) == 20 and all(copy["label"] for copy in copies)
    assert all(copy["line_labels"] == ["元退给我" in line for line in copy["input"].split("\n")] for copy in dictated)
    assert len({copy["line_labels"].index(True) for copy in dictated}) == 2  # before the first line, too
    without = augment([{"input": record["input"], "label": True} for record in records], 1.0)
    assert not any("line_labels" in record for record in without)

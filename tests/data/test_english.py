"""English for the notebooks' readers: complete, and of the dialogues that are shown."""

from data.english import glossed_dialogues, kind_in_english
from data.sample import ordinary, phrases


def test_every_kind_of_the_sample_has_an_english_name():
    kinds = [topic[name] for topic in phrases()["topics"] for name in ("scam", "non_fraud")]
    kinds += [kind["name"] for kind in ordinary()["kinds"]]
    assert all(kind_in_english(kind).isascii() for kind in kinds)


def test_a_count_behind_a_kind_is_no_part_of_its_name_and_an_unknown_kind_keeps_its_own():
    assert kind_in_english("投资诈骗(200)") == kind_in_english("投资诈骗") == "investment scam"
    assert kind_in_english("没有这一类") == "没有这一类"


def test_dialogues_are_chinese_with_english_for_every_line():
    for glossed in glossed_dialogues().values():
        assert len(glossed.text.split("\n")) == len(glossed.english) == len(glossed.rows)
        assert all(english.isascii() for english in glossed.english) and not glossed.text.isascii()


def test_the_scam_and_the_shops_call_differ_only_after_their_fourth_line():
    scam, shop = (glossed_dialogues()[name].text.split("\n") for name in ("refund scam", "refund by a shop"))
    assert scam[:4] == shop[:4] and scam[4] != shop[4]
    assert glossed_dialogues()["refund scam"].fraud_lines == [5, 7]
    assert glossed_dialogues()["refund by a shop"].fraud_lines == []

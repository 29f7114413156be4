"""Evaluation in training: large batches, equal work for every process, and the loss of the rows one by one."""

import pytest
import torch
from helpers import make_records, train_briefly

from antifraud.training import loop
from antifraud.training.batches import IGNORED, batches_by_tokens
from antifraud.training.loss import label_position_loss
from data.records import write_records


def test_a_batch_takes_rows_of_similar_length_up_to_its_tokens():
    lengths = [5, 3, 8, 2, 8, 4, 40]

    def batches(**limits):
        return batches_by_tokens(lengths, lambda tokens: -(-tokens // 4) * 4, **limits)

    assert batches(tokens=16, most_rows=9) == [[3, 1, 5], [0, 2], [4], [6]]  # widths 4, 8, 8, 40: the last has too many
    assert batches(tokens=16, most_rows=2) == [[3, 1], [5, 0], [2, 4], [6]]
    assert batches(tokens=10**6, most_rows=9) == [[3, 1, 5, 0, 2, 4, 6]]


def test_every_process_gets_as_many_batches_and_each_row_is_in_one():
    for processes in (1, 2, 3):
        batches = batches_by_tokens([4] * 7, lambda tokens: tokens, tokens=12, most_rows=9, processes=processes)
        assert len(batches) % processes == 0
        assert sorted(row for batch in batches for row in batch if row < 7) == list(range(7))
    assert batches_by_tokens([4] * 7, lambda tokens: tokens, tokens=99, most_rows=9, processes=2) == [
        [0, 1, 2, 3], [4, 5, 6]]
    assert batches_by_tokens([4], lambda tokens: tokens, tokens=99, most_rows=9, processes=2) == [[0], [1]]  # blank


@pytest.mark.parametrize("limit", [{"tokens_per_micro_batch": 20}, {"per_device_eval_batch_size": 3}])
def test_eval_loss_is_that_of_the_rows_one_by_one_however_they_are_batched(base, train_file, tmp_path, limit,
                                                                           monkeypatch):
    monkeypatch.setattr(loop, "FEWEST_EVAL_TOKENS", 160)
    rows = tmp_path / "eval.jsonl"
    write_records(rows, make_records(11, first_case=50))
    trainer = train_briefly(base, train_file, str(rows), tmp_path, max_steps=1, eval_steps=1, save_steps=1, **limit)
    batches = list(trainer.get_eval_dataloader())
    assert 3 < len(batches) <= 11
    trainer.model.eval()
    with torch.no_grad():
        losses = [label_position_loss(trainer.model, torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]]), 1)
                  for row in trainer.eval_dataset]
    n_labels = sum(label != IGNORED for row in trainer.eval_dataset for label in row["labels"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(sum(losses)) / n_labels, rel=1e-5)
    other = trainer.evaluate(trainer.eval_dataset.select(range(4)))  # not the rows of the run
    assert other["eval_loss"] != pytest.approx(float(sum(losses)) / n_labels, rel=1e-5)
    predicted = trainer.predict(trainer.eval_dataset).metrics  # as notebooks for other trainers do
    assert predicted["test_loss"] == pytest.approx(float(sum(losses)) / n_labels, rel=1e-5)

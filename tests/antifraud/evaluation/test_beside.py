"""Work beside a model on a CPU: in a process on a core of its own, and the same as when it is done in turn."""

import pytest
import torch

from antifraud.evaluation import beside
from antifraud.evaluation.beside import on_free_cores
from evaluate import evaluate_with_model, load_model


@pytest.fixture
def cores(monkeypatch) -> list[int]:
    """How many cores of two were chosen, one choice after the other."""
    chosen = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    return chosen


def test_a_model_leaves_a_core_to_the_work_beside_it_until_that_is_done(cores):
    model, work = torch.nn.Linear(1, 1), beside.Future()
    model.device = torch.device("cpu")
    with on_free_cores(model, {"work": work}):
        model(torch.ones(1))
        assert cores == [2, 1]
        work.set_result(None)
        model(torch.ones(1))
        assert cores == [2, 1, 2]
        cores.append(1)
    model(torch.ones(1))
    assert cores == [2, 1, 2, 1, 2]


def test_work_in_a_process_gives_what_it_gives_in_turn(base, run_folder, eval_file, monkeypatch, request, capsys):
    loaded, in_a_process, really = load_model(base, run_folder, "cpu"), [], beside.call_in_process

    def call_in_process(module, function, *args):
        in_a_process.append(function)
        return (really if module == "data.leakage" else beside.call)(module, function, *args)  # the others start slowly

    monkeypatch.setattr(beside, "call_in_process", call_in_process)
    in_turn = evaluate_with_model(*loaded, eval_file, "cpu", full=True)
    assert not in_a_process
    said = capsys.readouterr().err  # of each thing that may take minutes
    assert all(name in said for name in ("first, on the one core", "scoring, untuned", "baselines, label audit"))
    request.getfixturevalue("cores")
    report = evaluate_with_model(*loaded, eval_file, "cpu", full=True, progress=False)
    assert "%|" not in capsys.readouterr().err
    assert sorted(in_a_process) == ["answers", "overlap_with_file", "second_opinion"]
    assert report.pop("rows_per_second") > 0 < in_turn.pop("rows_per_second")
    assert report == in_turn and report["baselines"]["tfidf"] and report["overlap_with_train"]

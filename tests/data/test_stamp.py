"""What a place holds is compared with what is asked of it, and one process at a time is at it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from data import stamp
from data.files import DataError
from data.stamp import differences, locked, read_stamp, require_same, stamp_path, write_stamp

ROOT = Path(__file__).parents[2]


def fields_of(old: dict, new: dict) -> list[str]:
    return [text.split(" ")[0] for text in differences(old, new)]


@pytest.fixture(params=["folder", "file"])
def place(request, tmp_path) -> Path:
    path = tmp_path / "out"
    path.mkdir() if request.param == "folder" else path.write_text("rows\n")
    return path


# ---------------------------------------------------------------------------------------------------- the stamp


def test_a_stamp_lies_in_a_folder_and_beside_a_file(place):
    write_stamp(place, {"seed": 1})
    assert stamp_path(place) == (place / "stamp.json" if place.is_dir() else place.with_name("out.meta.json"))
    assert read_stamp(place) == {"seed": 1}
    assert place.is_dir() or place.read_text() == "rows\n"


def test_the_same_facts_pass_a_tuple_as_the_list_it_becomes(place):
    facts = {"answers": ("是", "否"), "lora": {"r": 16, "dropout": 0.1}, "none": None}
    write_stamp(place, facts)
    require_same(place, facts, "")
    require_same(place, {**facts, "answers": ["是", "否"]}, "")


@pytest.mark.parametrize("new, fields", [
    ({"data": "a", "lora": {"r": 8, "alpha": 32}}, ["lora.r"]),
    ({"data": "b", "lora": {"r": 16, "alpha": 16}}, ["data", "lora.alpha"]),
    ({"data": "a", "lora": None}, ["lora", "lora.r", "lora.alpha"]),
    ({"data": "a", "lora": {"r": 16}}, ["lora.alpha"]),
    ({"data": "a", "lora": {"r": 16, "alpha": 32}, "seed": None}, ["seed"]),
    ({"data": "a", "lora": {"r": 16.0, "alpha": 32}}, []),
])
def test_the_fields_that_differ_are_named_nested_ones_with_dots(new, fields):
    assert fields_of({"data": "a", "lora": {"r": 16, "alpha": 32}}, new) == fields


def test_a_refusal_is_one_line_with_path_values_and_remedy(place):
    write_stamp(place, {"train": "a" * 64, "instruction": "是不是诈骗？只答是或否。", "seed": 0})
    with pytest.raises(DataError) as refused:
        require_same(place, {"train": "b" * 64, "instruction": "是不是诈骗？只答真或假。", "seed": 0}, "use --output")
    said = str(refused.value)
    assert said.startswith(f"{place}: ") and said.endswith("; use --output") and "\n" not in said
    assert "是或否" in said and "真或假" in said and "seed" not in said
    assert "a" * 64 not in said and "b" * 64 not in said and len(said) < len(str(place)) + 200


def test_long_values_are_cut_to_where_they_differ():
    [said] = differences({"path": "x" * 500 + "1" + "y" * 500}, {"path": "x" * 500 + "2" + "y" * 500})
    assert "x1y" in said and "x2y" in said and len(said) < 80


def test_more_fields_than_a_line_holds_are_counted(place):
    write_stamp(place, {str(number): 0 for number in range(20)})
    with pytest.raises(DataError, match="and 16 more; "):
        require_same(place, {str(number): 1 for number in range(20)}, "x")


@pytest.mark.parametrize("content", [None, "", "[]", "\x00", b"\xff"])
def test_what_nothing_readable_is_known_about_is_refused(place, content):
    if content is not None:
        stamp_path(place).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=stamp_path(place).name):
        require_same(place, {}, "use --output")


# ----------------------------------------------------------------------------------------------------- the lock


def test_a_second_one_is_refused_and_what_is_there_is_kept(place):
    with locked(place, "use --output"):
        with pytest.raises(DataError, match="--output$") as refused:
            with locked(place, "use --output"):
                pass
        assert str(refused.value).startswith(f"{place}: ")
    with locked(place, ""):
        assert place.is_dir() or place.read_text() == "rows\n"


def test_a_file_that_is_not_there_is_made_and_open_for_appending(tmp_path):
    with locked(tmp_path / "new", "") as file:
        file.write(b"x")
    assert (tmp_path / "new").read_bytes() == b"x"


def test_an_error_inside_passes_through_and_lets_go(place):
    with pytest.raises(PermissionError), locked(place, ""):
        raise PermissionError(errno.EACCES, "mine")
    with locked(place, ""):
        pass


def test_one_that_waits_comes_after(place):
    order = []

    def second():
        with locked(place, "", wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(place, ""):
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_it_goes_with_a_process_that_is_killed(place):
    holder = subprocess.Popen([sys.executable, "-c", "import sys, time; from data.stamp import locked\n"
                               "with locked(sys.argv[1], ''): print('held', flush=True); time.sleep(60)", str(place)],
                              cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataError), locked(place, ""):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(place, ""):
        pass


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"), locked(tmp_path / "file" / "below", ""):
        pass


def test_a_file_system_without_locks_is_written_all_the_same(place, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(place, "") as file:
        assert file.writable()


def test_where_there_is_no_flock_a_byte_beyond_the_end_is_locked(place, monkeypatch):
    asked = []

    def locking(descriptor, mode, count):
        asked.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, count))
        if len(asked) > 1:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(stamp, "fcntl", None)
    monkeypatch.setattr(stamp, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2, LK_LOCK=1), raising=False)
    with locked(place, "") as file:
        before = file.tell()
        with pytest.raises(DataError), locked(place, ""):
            pass
        assert file.tell() == before
    assert asked == [(2**40, 2, 1)] * 2

"""A local page to try a dialogue on: how the probability of fraud moves from line to line.

    python -m antifraud.serving.app --model MODEL [--checkpoint DIR] [--port 7860]

Only Python's own http.server and one page without foreign parts: it listens on 127.0.0.1 alone, fetches nothing from
anywhere and keeps nothing of what is typed.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data.command import command
from data.files import DataError, one_line
from data.normalise import is_blank
from data.prompt import PromptEncoder, canonical_lines
from data.speakers import split_lines

from ..checkpoint import lineage_of
from ..evaluation.growing import GrowingDialogue
from ..evaluation.scoring import calibrated, predict_details, score_prompts, windows_of
from ..model import default_device, load_tuned

PAGE = Path(__file__).with_name("app.html")
ADDRESS = "127.0.0.1"
LONGEST_REQUEST = 256 * 1024  # bytes
MOST_LINES = 300  # to be scored one after the other; a longer dialogue is scored by its windows
EXAMPLES = {  # our own words
    "退款电话": "客服: 您好，我是百优商城的客服，您上周买的电饭煲有质量问题，我们给您双倍退款。\n"
              "顾客: 啊？我用着还挺好的呀。\n"
              "客服: 是批次问题，不退的话会扣您的征信分。\n"
              "顾客: 那怎么退？\n"
              "客服: 您先下载一个会议软件，打开屏幕共享，我一步一步教您。\n"
              "顾客: 好的，打开了。\n"
              "客服: 手机会收到六位数字，您念给我听，退款马上到账。",
    "快递电话": "快递员: 您好，您的包裹放在门口还是驿站？\n"
              "顾客: 放驿站吧，取件码发我短信就行。\n"
              "快递员: 好的，取件码您自己留着，不用告诉别人。\n"
              "顾客: 知道了，谢谢，下班去拿。",
    "家人提醒": "女儿: 妈，今天有没有陌生人打电话给您？\n"
              "妈妈: 有一个，说是公安局的，让我把钱转到安全账户。\n"
              "女儿: 那是骗子，您没转吧？\n"
              "妈妈: 没有，我说要先问你，他就挂了。\n"
              "女儿: 做得对，以后这种电话直接挂掉。",
}


# --------------------------------------------------------------------------------------------------- the scores


@dataclass(frozen=True)
class ScoredLine:
    """One spoken line, or a window of many, as the model sees it, and the probability of fraud after it.

    Attributes:
        number: of the line of the given text that it ends with, counted from 1.
        role: who speaks, as the model sees it; None where the line names nobody, and of a window.
        from_line: of the given text, where the window begins that the model read up to here; above 1 in long dialogues.
        of_line: probability that this line itself is part of a fraud; None where the model did not learn that.
    """

    number: int
    role: str | None
    content: str
    probability: float
    from_line: int
    of_line: float | None


def score_lines(model, tokenizer, dialogue: str) -> list[ScoredLine]:
    """The probability of fraud after each line of `dialogue` that is not blank, in order.

    The last is what `evaluate` gives for a dialogue that the model reads at once.
    """
    if is_blank(dialogue):
        return []
    growing = GrowingDialogue(model, tokenizer)
    lines, origin = canonical_lines(dialogue.rstrip(), growing.encoder.task)
    seen = split_lines("\n".join(lines))
    turns, start = {}, 0
    for number, line in enumerate(lines):
        if line.strip():  # a blank line is no turn; it comes with the next
            turns[number] = growing.add("\n".join(lines[start:number + 1])), origin[growing.first_line][0] + 1
            start = number + 1
    of_lines = dict(enumerate(growing.of_lines))
    return [ScoredLine(origin[number][1] + 1, *seen[number], *turn, of_lines.get(number))
            for number, turn in turns.items()]


def score_windows(model, tokenizer, dialogue: str) -> list[ScoredLine]:
    """The probability of fraud in each of the overlapping windows in which `dialogue` is read."""
    decision, encoder = lineage_of(model).decision, PromptEncoder(tokenizer, lineage_of(model).task)
    windows, = windows_of(encoder, [dialogue])
    scores = calibrated(score_prompts(model, encoder, [window.ids for window in windows]), decision)
    read = [window.ids[len(encoder.head):len(window.ids) - len(encoder.tail)] for window in windows]
    return [ScoredLine(window.last_line + 1, None, tokenizer.decode(ids), float(score), window.first_line + 1, None)
            for window, ids, score in zip(windows, read, scores)]


def score_dialogue(model, tokenizer, dialogue: str) -> dict:
    """What the page shows of a dialogue.

    Returns:
        ``probability`` of the whole dialogue, as `evaluate.predict` gives it, None where it is empty; in how many
        overlapping ``windows`` it was read and the ``window_lines`` [first, last] of the highest; ``lines``, those of
        `score_lines`, or of `score_windows` where there are more than `MOST_LINES` (``by_window``).
    """
    dialogue = dialogue.rstrip()
    if len(canonical_lines(dialogue, lineage_of(model).task)[0]) > MOST_LINES:
        lines = score_windows(model, tokenizer, dialogue)
        highest = max(lines, key=lambda window: window.probability)
        return {"probability": highest.probability, "windows": len(lines), "by_window": True,
                "window_lines": [highest.from_line, highest.number], "lines": list(map(asdict, lines))}
    lines = list(map(asdict, score_lines(model, tokenizer, dialogue)))
    if not lines:
        return {"probability": None, "windows": 0, "window_lines": None, "by_window": False, "lines": []}
    whole, = predict_details(model, tokenizer, [dialogue])
    return {"probability": whole.probability, "windows": whole.windows, "window_lines": list(whole.lines),
            "by_window": False, "lines": lines}


# --------------------------------------------------------------------------------------------------- the server


class BadRequest(ValueError):
    """A request that is answered with one line instead of scores."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections that may wait to be accepted; Python's five lose those of a burst


def make_server(model, tokenizer, port: int = 7860) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, not yet running; port 0 means any that is free.

    Raises:
        DataError: the port is taken or is none.
    """
    lineage = lineage_of(model)
    facts = {"model": lineage.base.get("name", ""), "checkpoint": lineage.checkpoint,
             "threshold": lineage.decision.threshold, "examples": EXAMPLES}
    busy = threading.Lock()  # one dialogue at a time: two would only slow each other down

    def score(dialogue: str) -> dict:
        with busy:
            return {"threshold": lineage.decision.threshold, **score_dialogue(model, tokenizer, dialogue)}

    handler = type("Handler", (_Handler,), {"facts": facts, "score": staticmethod(score)})
    return _bound(port, handler)


def _bound(port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    try:
        return _Server((ADDRESS, port), handler)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"port {port}: {why}; choose another with --port") from None


class _Handler(BaseHTTPRequestHandler):
    """GET / and /task, POST /score; `facts` and `score` are set by `make_server`."""

    facts: dict
    server_version = "fraud-page"
    sys_version = ""
    timeout = 60  # seconds without a byte, after which a connection is closed

    def do_GET(self) -> None:
        if not self._is_local():
            return
        if self.path == "/":
            page = PAGE.read_bytes()
            self._send(200, page, "text/html; charset=utf-8", {"Content-Security-Policy": page_policy(page)})
        elif self.path == "/task":
            self._send_json(200, self.facts)
        else:
            self._send_json(404, {"error": "没有这个页面"})

    def do_POST(self) -> None:
        if not self._is_local():
            return
        try:
            if self.path != "/score":
                raise BadRequest("没有这个页面")
            self._send_json(200, self.score(self._dialogue()))
        except (BadRequest, DataError, FloatingPointError) as error:
            self.close_connection = True  # what was not read of the request is no second one
            self._send_json(400, {"error": str(error)})
        except Exception as error:  # out of memory, say: the page tells, and the next dialogue may fit
            self.close_connection = True
            self._send_json(500, {"error": f"没能算出结果：{one_line(error)}"})

    def _is_local(self) -> bool:
        """Answers, and says no to, a page elsewhere that had its own name resolved to this machine."""
        host = self.headers.get("Host", "")
        if re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", host):
            return True
        self.close_connection = True
        self._send_json(403, {"error": "请用 http://127.0.0.1 打开本页"})
        return False

    def _dialogue(self) -> str:
        # A page elsewhere cannot send JSON here without being asked first, and nobody answers that question.
        if self.headers.get_content_type() != "application/json":
            raise BadRequest("请以 application/json 发送")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > LONGEST_REQUEST:
            raise BadRequest(f"对话超过 {LONGEST_REQUEST // 1024} KiB，或没有给出长度")
        try:
            dialogue = json.loads(self.rfile.read(int(length)))["dialogue"]
            dialogue.encode("utf-8")  # no half surrogate pairs
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise BadRequest('应为 {"dialogue": "……"}') from None
        return dialogue

    def _send_json(self, status: int, value: dict) -> None:
        self._send(status, json.dumps(value, ensure_ascii=False).encode(), "application/json; charset=utf-8")

    def _send(self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), "Cache-Control": "no-store",
                            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
                            **(headers or {})}.items():
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # a browser that has gone needs no answer
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Keeps no record of who asked what."""


def page_policy(page: bytes) -> str:
    """The Content-Security-Policy under which the page runs its own script and style, and nothing else."""
    hashes = {tag: base64.b64encode(hashlib.sha256(
        re.search(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL).group(1)).digest()).decode()
        for tag in (b"script", b"style")}
    return (f"default-src 'none'; script-src 'sha256-{hashes[b'script']}'; style-src 'sha256-{hashes[b'style']}'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


# ------------------------------------------------------------------------------------------ the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m antifraud.serving.app", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hugging Face hub id, or modelscope:ID")
    parser.add_argument("--checkpoint", default="", help="checkpoint-N, or a run's folder for its best one")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument("--device", default=default_device(), help="default: the GPU if there is one")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    _bound(args.port, BaseHTTPRequestHandler).server_close()  # a port that is taken is said before a model is loaded
    server = make_server(*load_tuned(args.model, args.checkpoint, args.device), args.port)
    print(f"open http://{ADDRESS}:{server.server_address[1]} (Ctrl+C ends)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:  # how it is ended
        return 0
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

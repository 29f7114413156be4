"""A dialogue that is still going on, scored after each of its lines at the cost of what is new."""

import copy
import inspect
import math

import numpy as np
import torch
from peft import PeftModel
from scipy.special import expit
from transformers import DynamicCache

from data.prompt import PromptEncoder

from ..checkpoint import Decision, lineage_of
from ..logits import label_logits_at
from .scoring import calibrated, inference, require_text, score_of_log_odds, windows_of


class GrowingDialogue:
    """The probability of fraud after each line of a dialogue that is still going on.

    Keys and values of the prompt's head and of the dialogue so far stay in a cache. A line costs one forward pass over
    its own tokens and one over the prompt's short tail, instead of one over the whole prompt. What comes out is what
    `score_prompts` gives for the dialogue up to that line, within rounding. Of a dialogue longer than the context, the
    newest of its overlapping windows is scored.

    Attributes:
        encoder: of the model's task.
        first_line: of the window that was scored last, counted from 0.
        forwarded: tokens that the model was run over so far.
        of_lines: probability of each line so far that it is part of a fraud; empty where the model did not learn that.
    """

    def __init__(self, model, tokenizer, decision: Decision | None = None) -> None:
        """`decision`: one that ``early_warning`` found; without it the checkpoint's."""
        self.model = model
        self.encoder = PromptEncoder(tokenizer, lineage_of(model).task)
        self.decision = decision or lineage_of(model).decision
        self.first_line = 0
        self.forwarded = 0
        self.of_lines: list[float] = []
        self._text: str | None = None
        self._prompt: list[int] = []
        self._probability = math.nan
        self._cached: list[int] = []  # the token ids that the cache holds
        self._log_odds: dict[int, float] = {}  # of the lines that end there, by their places
        self._cache = self._new_cache()

    def add(self, line: str) -> float:
        """The probability of fraud after one more line (``speaker: what is said``).

        Raises:
            DataError: the line is no text.
            FloatingPointError: the probability is not finite.
        """
        require_text(line, "the line")
        self._text = line if self._text is None else f"{self._text}\n{line}"
        # Tokenised from the start: a line break may merge with the mark before it, and a role comes from what precedes.
        window = windows_of(self.encoder, [self._text])[0][-1]
        prompt, self.first_line = window.ids, window.first_line
        if prompt != self._prompt:
            self._probability = self._score(prompt)
            self._prompt = prompt
        return self._probability

    def _score(self, prompt: list[int]) -> float:
        # The last token of the dialogue goes with the tail: it is the one that the next line may merge with.
        end = max(0, len(prompt) - len(self.encoder.tail) - 1)
        rest = prompt[end:] + self.encoder.answer_prefix
        line_ends = self.encoder.line_ends(prompt) if self.decision.line_aware else []
        with inference(self.model):
            self._remember(prompt[:end], [place for place in line_ends if place < end])
            # A copy, since a sliding window forgets for the tail's sake what the next line still needs.
            last = self._forward(rest, copy.deepcopy(self._cache), [0] * bool(line_ends) + [len(rest) - 1])
        of_lines = [self._log_odds[place] if place < end else last[0] for place in line_ends]
        self.of_lines[self.first_line:] = expit(of_lines).tolist()
        score = score_of_log_odds([*of_lines, last[-1]], self.decision)
        if not math.isfinite(score):
            raise FloatingPointError("the score is not finite")
        return float(calibrated(np.array([score]), self.decision)[0])

    def _remember(self, ids: list[int], line_ends: list[int]) -> None:
        """Brings the cache to hold `ids`, from the longest beginning that it shares with them.

        Of the lines that end in what is new the log-odds are kept, too.
        """
        pairs = zip(self._cached, ids)
        common = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self._cached), len(ids)))
        if common == 0 or not self._crop(common):
            self._cache, common = self._new_cache(), 0
        new, self._cached = ids[common:], []  # nothing is known of the cache while it is written
        if new:
            ends = [place for place in line_ends if place >= common]
            odds = self._forward(new, self._cache, [place - common for place in ends] or [0])
            self._log_odds.update(zip(ends, odds))
        self._cached = ids

    def _crop(self, length: int) -> bool:
        """Cuts the cache back to its first tokens; False where it cannot be, as past the end of a sliding window."""
        if length == len(self._cached):
            return True
        try:
            self._cache.crop(length - len(self._cached))
        except (RuntimeError, ValueError):
            return False
        return True

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config.get_text_config())

    def _forward(self, ids: list[int], cache: DynamicCache, places: list[int]) -> list[float]:
        """[places] the log-odds of "fraud" against "not fraud" as what follows; adds `ids` to `cache`."""
        self.forwarded += len(ids)
        input_ids = torch.tensor([ids], device=self.model.device)
        with label_logits_at(self.model, torch.tensor(places, device=self.model.device), self.encoder.label_ids):
            logits = self.model(input_ids=input_ids, use_cache=True, **{_cache_argument(self.model): cache}).logits
        fraud, other = logits.double().T
        return (fraud - other).tolist()


def _cache_argument(model) -> str:
    """What the model calls its cache: ``cache`` in newer transformers, ``past_key_values`` in older ones."""
    causal_lm = model.get_base_model() if isinstance(model, PeftModel) else model
    return "cache" if "cache" in inspect.signature(causal_lm.forward).parameters else "past_key_values"

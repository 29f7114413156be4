"""What is reached without a language model: the bar to clear, trained on the model's own train split.

Fitted once for a train file and kept beside it, in ``TRAIN.baselines/``, with the answers to each set of dialogues: a
kept file is found by the sha256 of the train file, of this code and of the libraries' versions. All are arrays, none a
pickle: a folder that came with somebody's data runs no code.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.special import expit, logit
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from data.files import DataError, one_line, write_bytes
from data.normalise import normalise
from data.prompt import Task, canonical, canonical_line_labels
from data.records import Skipped, read_records
from data.speakers import split_lines

from .processes import call_in_process

CORES = 4  # from which on one of them fits TF-IDF of lines beside that of dialogues
ROOT = Path(__file__).parents[2]
CODE = (Path(__file__), *sorted((ROOT / "data").glob("*.py")))  # what decides an answer, beside the libraries


class Majority:
    """The more frequent label of train, for every dialogue."""

    def fit(self, texts: Sequence[str], labels: Sequence[bool]) -> "Majority":
        return self.restore({"fraud": float(np.mean(labels) >= 0.5)})

    def state(self) -> dict:
        return {"fraud": self.fraud}

    def restore(self, state: Mapping) -> "Majority":
        self.fraud = float(state["fraud"])
        return self

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        return np.full(len(texts), self.fraud)


class OneWord:
    """The best rule "contains this n-gram of 2 or 3 characters or not", over the text with its speakers' names."""

    def fit(self, texts: Sequence[str], labels: Sequence[bool]) -> "OneWord":
        counter = CountVectorizer(analyzer="char", ngram_range=(2, 3), min_df=5, binary=True)
        contains = counter.fit_transform([normalise(text) for text in texts])
        labels = np.asarray(labels, dtype=float)
        with_word = np.asarray(contains.sum(0)).ravel().astype(float)
        fraud_with = np.asarray(labels @ contains).ravel()
        without, fraud_without = len(labels) - with_word, labels.sum() - fraud_with
        shares = [fraud / np.maximum(rows, 1) for fraud, rows in ((fraud_with, with_word), (fraud_without, without))]
        impurity = sum(rows * share * (1 - share) for rows, share in zip((with_word, without), shares))
        best = int(np.argmin(impurity))  # Gini's, as in a decision stump
        return self.restore({"word": counter.get_feature_names_out()[best], "present": shares[0][best],
                             "absent": shares[1][best]})

    def state(self) -> dict:
        return {"word": self.word, "present": self.present, "absent": self.absent}

    def restore(self, state: Mapping) -> "OneWord":
        self.word, self.present, self.absent = str(state["word"]), float(state["present"]), float(state["absent"])
        return self

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        plain = (re.sub(r"\s\s+", " ", normalise(text).lower()) for text in texts)  # as CountVectorizer reads them
        found = [self.word in text for text in plain]
        return np.where(found, self.present, self.absent)

    def rule(self) -> str:
        return f"fraud if {self.word!r} is {'present' if self.present > self.absent else 'absent'}"


class Length:
    """How long the dialogue is, in characters and in lines."""

    def fit(self, texts: Sequence[str], labels: Sequence[bool]) -> "Length":
        scaler, classifier = StandardScaler(), logistic_regression()
        classifier.fit(scaler.fit_transform(_lengths(texts)), labels)
        weights = classifier.coef_[0] / scaler.scale_
        return self.restore({"weights": weights, "bias": classifier.intercept_[0] - weights @ scaler.mean_})

    def state(self) -> dict:
        return {"weights": self.weights, "bias": self.bias}

    def restore(self, state: Mapping) -> "Length":
        self.weights, self.bias = np.asarray(state["weights"]), float(state["bias"])
        return self

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        return expit(_lengths(texts) @ self.weights + self.bias)


class CharTfidf:
    """TF-IDF of character n-grams of what `view` shows of the dialogues, and logistic regression."""

    def __init__(self, view, longest: int) -> None:
        self.view, self.longest = view, longest

    def fit(self, texts: Sequence[str], labels: Sequence[bool]) -> "CharTfidf":
        self.vectorizer = char_tfidf((1, self.longest))
        classifier = logistic_regression().fit(self.vectorizer.fit_transform(self.view(texts)), labels)
        self.weights, self.bias = classifier.coef_[0], float(classifier.intercept_[0])
        return self

    def state(self) -> dict:
        return {"vocabulary": json.dumps(self.vectorizer.get_feature_names_out().tolist()),
                "idf": self.vectorizer.idf_, "weights": self.weights, "bias": self.bias}

    def restore(self, state: Mapping) -> "CharTfidf":
        self.vectorizer = char_tfidf((1, self.longest), vocabulary=json.loads(str(state["vocabulary"])))
        self.vectorizer.idf_ = np.asarray(state["idf"])
        self.weights, self.bias = np.asarray(state["weights"]), float(state["bias"])
        return self

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        return expit(self.vectorizer.transform(self.view(texts)) @ self.weights + self.bias)


class TfidfLineLabels:
    """TF-IDF of a dialogue and that of its most suspicious line: the mean of their log-odds.

    What a model trained with the auxiliary line loss has to beat: it was told which lines are fraud, TF-IDF alone not.
    """

    def __init__(self, dialogue_tfidf: CharTfidf, line_tfidf: CharTfidf) -> None:
        self.dialogue_tfidf, self.line_tfidf = dialogue_tfidf, line_tfidf

    def probabilities(self, texts: Sequence[str], by_dialogue: np.ndarray | None = None) -> np.ndarray:
        """[texts]; `by_dialogue`: what TF-IDF of whole dialogues says of them, where it was asked already."""
        if by_dialogue is None:
            by_dialogue = self.dialogue_tfidf.probabilities(texts)
        by_line = [of_lines.max() for of_lines in self.score_single_lines(texts)]
        return expit(logit(np.array([by_line, by_dialogue]).clip(1e-6, 1 - 1e-6)).mean(0))

    def score_single_lines(self, texts: Sequence[str]) -> list[np.ndarray]:
        """For each dialogue, [lines] the probability that a line is part of a fraud, by its own words alone."""
        lines = [_said(text) for text in texts]
        distinct = {line: number for number, line in
                    enumerate(dict.fromkeys(line for of_dialogue in lines for line in of_dialogue))}
        scores = self.line_tfidf.probabilities(list(distinct))
        return [scores[[distinct[line] for line in of_dialogue]] for of_dialogue in lines]


def build_baselines() -> dict:
    """Unfitted classifiers of dialogue texts, by name.

    majority, one_word, length: see their classes. speaker_names: only who the speakers are. tfidf: character
    1-4-grams of what the model sees (roles instead of names).
    """
    return {"majority": Majority(), "one_word": OneWord(), "speaker_names": CharTfidf(_names, 3), "length": Length(),
            "tfidf": CharTfidf(_neutral, 4)}


def build_tfidf() -> Pipeline:
    """The strongest of them as a pipeline of scikit-learn's, unfitted."""
    return make_pipeline(FunctionTransformer(_neutral), char_tfidf((1, 4)), logistic_regression())


def fit_baselines(train: Sequence[dict]) -> dict:
    """The baselines of `build_baselines`, fitted on train records; ``tfidf_line_labels``, too, where all label lines.

    Raises:
        DataError: records of one label only.
    """
    texts, labels = [record["input"] for record in train], [record["label"] for record in train]
    if len(set(labels)) < 2:
        raise DataError(f"all {len(labels)} train records have the label {str(labels[0]).lower()}")
    fitted = {}
    with ThreadPoolExecutor(1) as beside:
        lines_begun = (os.cpu_count() or 1) >= CORES and beside.submit(call_in_process, __name__, "fit_lines", train)
        for name, classifier in build_baselines().items():
            try:
                fitted[name] = classifier.fit(texts, labels)
            except ValueError as error:  # so few records that no n-gram is frequent enough
                if name == "tfidf":
                    raise DataError(f"{len(train)} train records are too few for TF-IDF: {one_line(error)}") from None
    line_tfidf = lines_begun.result() if lines_begun else fit_lines(train)
    if line_tfidf is not None:
        fitted["tfidf_line_labels"] = TfidfLineLabels(fitted["tfidf"], line_tfidf)
    return fitted


def fit_lines(train: Sequence[dict]) -> CharTfidf | None:
    """A TF-IDF of lines fitted on train records; None where not all label their lines."""
    if not all("line_labels" in record for record in train):
        return None
    # Once each: segments of several lengths repeat their lines.
    lines = list(dict.fromkeys(line for record in train
                               for line in zip(_said(record["input"]), _labels_of_said(record), strict=True)))
    if len({label for _, label in lines}) < 2:
        return None
    with contextlib.suppress(ValueError):  # too few lines
        return CharTfidf(_neutral, 4).fit(*zip(*lines))


def fraud_probability(classifier, dialogues: Sequence[str]) -> np.ndarray:
    """[dialogues] probability of fraud, of a baseline or a classifier of scikit-learn's."""
    if not hasattr(classifier, "predict_proba"):
        return classifier.probabilities(list(dialogues))
    return classifier.predict_proba(list(dialogues))[:, list(classifier.classes_).index(True)]


# ---------------------------------------------------------------------------------------- kept beside a train file


def kept_baselines(train_path: str | Path) -> tuple[dict, "Shelf"]:
    """The baselines fitted on a train file, from its shelf if they lie there; and the shelf."""
    shelf = Shelf(train_path)
    kept = shelf.read("fitted")
    if kept is None:
        fitted = fit_baselines(read_records(train_path, Skipped()))
        parts = {name: classifier for name, classifier in fitted.items() if name != "tfidf_line_labels"}
        if "tfidf_line_labels" in fitted:
            parts["lines"] = fitted["tfidf_line_labels"].line_tfidf
        shelf.write("fitted", {f"{name}/{key}": value for name, classifier in parts.items()
                               for key, value in classifier.state().items()})
        return fitted, shelf
    restored = {}
    for name, classifier in {**build_baselines(), "lines": CharTfidf(_neutral, 4)}.items():
        state = {key.removeprefix(f"{name}/"): value for key, value in kept.items() if key.startswith(f"{name}/")}
        if state:
            restored[name] = classifier.restore(state)
    if "lines" in restored:
        restored["tfidf_line_labels"] = TfidfLineLabels(restored["tfidf"], restored.pop("lines"))
    return restored, shelf


class Shelf:
    """Arrays kept beside a train file, found again only for the same file, code and library versions."""

    def __init__(self, train_path: str | Path) -> None:
        digest = hashlib.sha256(Path(train_path).read_bytes())
        for path in CODE:
            digest.update(path.read_bytes())
        for package in ("numpy", "scikit-learn"):
            digest.update(importlib.metadata.version(package).encode())
        self.key, self.folder = digest.hexdigest(), Path(f"{train_path}.baselines")
        self.note: str | None = None

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.key[:16]}-{name}.npz"

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of that name; None where there are none, or no good ones."""
        try:
            with np.load(self._path(name), allow_pickle=False) as kept:
                return dict(kept)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            return None

    def write(self, name: str, arrays: Mapping) -> None:
        """Keeps arrays; where the folder cannot be written to, that is noted and nothing else."""
        file = io.BytesIO()
        np.savez(file, **arrays)
        try:
            write_bytes(self._path(name), file.getvalue())
        except DataError as error:
            self.note = str(error)


def answers(train_path: str, texts: Mapping[str, Sequence[str]], lines_of: str | None = None,
            of_tfidf: Mapping[str, Sequence[str]] | None = None) -> dict:
    """Probabilities of all baselines fitted on a train file, for several sets of dialogues.

    Args:
        texts: by the name of a set, its dialogues.
        lines_of: of which set the single lines are scored, too.
        of_tfidf: more sets, for which TF-IDF alone is asked.

    Returns:
        ``probabilities``: set -> baseline -> [dialogues]; ``rule``, that of `OneWord`; ``lines``: of each dialogue,
        [lines], None where the train file labels no lines; ``note``: why nothing could be kept, if so.
    """
    fitted, shelf = kept_baselines(train_path)
    probabilities = {}
    for asked, sets in ((fitted, texts), ({"tfidf": fitted["tfidf"]}, of_tfidf or {})):
        for name, dialogues in sets.items():
            kept_as = hashlib.sha256(json.dumps([list(asked), list(dialogues)]).encode()).hexdigest()[:16]
            found = shelf.read(kept_as)
            if found is None:
                found = _probabilities(asked, dialogues)
                shelf.write(kept_as, found)
            probabilities[name] = found
    lines = None
    if lines_of is not None and "tfidf_line_labels" in fitted:
        lines = fitted["tfidf_line_labels"].score_single_lines(texts[lines_of])
    return {"probabilities": probabilities, "rule": fitted["one_word"].rule() if "one_word" in fitted else None,
            "lines": lines, "note": shelf.note}


def tfidf_answers(train_path: str, texts: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """By the name of a set, [dialogues] the probabilities of TF-IDF fitted on a train file."""
    found = answers(train_path, {}, of_tfidf=texts)["probabilities"]
    return {name: of_set["tfidf"] for name, of_set in found.items()}


def _probabilities(classifiers: Mapping, dialogues: Sequence[str]) -> dict[str, np.ndarray]:
    """By classifier, [dialogues] probabilities; of equal dialogues, and by TF-IDF, one is read once."""
    distinct = list(dict.fromkeys(dialogues))
    place = {text: number for number, text in enumerate(distinct)}
    found: dict[str, np.ndarray] = {}
    for name, classifier in classifiers.items():
        found[name] = (classifier.probabilities(distinct, found["tfidf"]) if name == "tfidf_line_labels"
                       else fraud_probability(classifier, distinct))
    rows = [place[text] for text in dialogues]
    return {name: of_distinct[rows] for name, of_distinct in found.items()}


def char_tfidf(ngram_range: tuple[int, int], vocabulary: Sequence[str] | None = None) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char", ngram_range=ngram_range, min_df=2, sublinear_tf=True, dtype=np.float32,
                           vocabulary=vocabulary)


def logistic_regression() -> LogisticRegression:
    return LogisticRegression(C=10.0, max_iter=1000)


def _said(text: str) -> list[str]:
    """What is said in each line of a dialogue."""
    return [said for _, said in split_lines(canonical(text, Task()))]


def _labels_of_said(record: dict) -> list[bool]:
    return canonical_line_labels(record["input"], record["line_labels"], Task())


def _neutral(texts: Sequence[str]) -> list[str]:
    return [canonical(text, Task()) for text in texts]


def _names(texts: Sequence[str]) -> list[str]:
    return [" ".join(name for name, _ in split_lines(normalise(text)) if name) or "-" for text in texts]


def _lengths(texts: Sequence[str]) -> np.ndarray:
    return np.log([[len(text), 1 + text.count("\n")] for text in _neutral(texts)])

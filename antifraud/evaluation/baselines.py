"""What is reached without a language model: the bar to clear, trained on the model's own train split."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from scipy.special import expit, logit
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from data.prompt import Task, canonical, canonical_line_labels
from data.speakers import split_lines

from .metrics import average_precision_difference, classification_metrics, f1_difference


def build_baselines() -> dict[str, Pipeline | DummyClassifier]:
    """Unfitted classifiers over dialogue texts.

    majority: the more frequent label. one_word: the best rule "contains this n-gram or not", a decision stump
    over the raw text. speaker_names: only who the speakers are. length: only how long the dialogue is.
    tfidf: character 1-4-grams of what the model sees (roles instead of names), logistic regression.
    """
    return {
        "majority": DummyClassifier(strategy="most_frequent"),
        "one_word": make_pipeline(CountVectorizer(analyzer="char", ngram_range=(2, 3), min_df=5, binary=True),
                                  DecisionTreeClassifier(max_depth=1, random_state=0)),
        "speaker_names": make_pipeline(FunctionTransformer(_names), _char_tfidf((1, 3)), _logistic_regression()),
        "length": make_pipeline(FunctionTransformer(_lengths), StandardScaler(), _logistic_regression()),
        "tfidf": build_tfidf(),
    }


def build_tfidf() -> Pipeline:
    """The strongest of them, unfitted."""
    return make_pipeline(FunctionTransformer(_neutral), _char_tfidf((1, 4)), _logistic_regression())


class TfidfWithLines:
    """TF-IDF of a dialogue and that of its most suspicious line: the mean of their log-odds.

    What a model that learned of single lines has to beat: it knows what they say of themselves, and TF-IDF alone not.
    """

    classes_ = (False, True)

    def __init__(self, of_dialogues: Pipeline, of_lines: Pipeline) -> None:
        self.of_dialogues, self.of_lines = of_dialogues, of_lines

    def predict_proba(self, dialogues: Sequence[str]) -> np.ndarray:
        """[dialogues, 2]"""
        suspicious = [of_lines.max() for of_lines in self.score_single_lines(dialogues)]
        both = np.array([suspicious, fraud_probability(self.of_dialogues, dialogues)]).clip(1e-6, 1 - 1e-6)
        fraud = expit(logit(both).mean(0))
        return np.column_stack([1 - fraud, fraud])

    def score_single_lines(self, dialogues: Sequence[str]) -> list[np.ndarray]:
        """For each dialogue, [lines] the probability that a line is part of a fraud, by its own words alone."""
        lines = [_said(text) for text in dialogues]
        scores = fraud_probability(self.of_lines, [line for of_dialogue in lines for line in of_dialogue])
        return np.split(scores, np.cumsum([len(of_dialogue) for of_dialogue in lines])[:-1])


Classifier = Pipeline | DummyClassifier | TfidfWithLines


def fit_baselines(train: Sequence[dict]) -> dict[str, Classifier]:
    """The baselines of `build_baselines`, fitted on train records; ``tfidf_with_lines``, too, where all label lines."""
    texts, labels = [record["input"] for record in train], [record["label"] for record in train]
    fitted = {name: classifier.fit(texts, labels) for name, classifier in build_baselines().items()}
    with_lines = fit_tfidf_with_lines(train, fitted["tfidf"])
    return {**fitted, **({"tfidf_with_lines": with_lines} if with_lines else {})}


def fit_tfidf_with_lines(train: Sequence[dict], of_dialogues: Pipeline) -> TfidfWithLines | None:
    """`TfidfWithLines` with a TF-IDF of lines fitted on train records; None where not all label their lines."""
    if not all("line_labels" in record for record in train):
        return None
    # Once each: pieces of several lengths repeat their lines.
    lines = list(dict.fromkeys(line for record in train
                               for line in zip(_said(record["input"]), _labels_of_said(record), strict=True)))
    if len({label for _, label in lines}) < 2:
        return None
    return TfidfWithLines(of_dialogues, build_tfidf().fit(*zip(*lines)))


def fraud_probability(classifier: Classifier, dialogues: Sequence[str]) -> np.ndarray:
    """[dialogues] probability of fraud."""
    return classifier.predict_proba(list(dialogues))[:, list(classifier.classes_).index(True)]


def against_baselines(records: Sequence[dict], answers: Sequence[bool],
                      fitted: Mapping[str, Classifier], *, scores: np.ndarray | None = None,
                      untuned: np.ndarray | None = None, groups: Sequence[Hashable] | None = None) -> dict | None:
    """Each baseline's metrics on `records`, and how far the model's F1 and average precision lie above its own.

    Args:
        answers: [records] the model's.
        fitted: the baselines of `fit_baselines`; may be empty.
        scores: [records] the model's probabilities; None if it gave answers only.
        untuned: [records] probabilities of the model without its adapter.
        groups: [records] the dialogue of each; see `metrics.bootstrap`.

    Returns:
        by baseline; None where there is none. All have the threshold 0.5: only the model's is chosen.
    """
    dialogues, y_true = [record["input"] for record in records], [record["label"] for record in records]
    others = {"untuned": untuned} if untuned is not None else {}
    others.update({name: fraud_probability(classifier, dialogues) for name, classifier in fitted.items()})
    found = {name: against_scores(y_true, answers, scores, other, groups) for name, other in others.items()}
    if fitted:
        found["one_word"]["rule"] = describe_one_word_rule(fitted["one_word"])
    return found or None


def against_scores(y_true: Sequence[bool], answers: Sequence[bool], scores: np.ndarray | None, other: np.ndarray,
                   groups: Sequence[Hashable] | None = None) -> dict:
    """A baseline's metrics by its probabilities `other` [rows], and the model's minus them; see `against_baselines`.

    ``model_average_precision_minus_this`` is None where the model has no `scores`.
    """
    return {
        **classification_metrics(y_true, other >= 0.5, other),
        "model_f1_minus_this": f1_difference(y_true, answers, other >= 0.5, groups),
        "model_average_precision_minus_this":
            None if scores is None else average_precision_difference(y_true, scores, other, groups),
    }


def describe_one_word_rule(fitted: Pipeline) -> str:
    """The rule that `one_word` found, in words."""
    vectorizer, stump = fitted[0], fitted[1]
    word = vectorizer.get_feature_names_out()[stump.tree_.feature[0]]
    fraud = list(stump.classes_).index(True)
    absent, present = (stump.tree_.value[child][0][fraud] for child in (1, 2))
    return f"fraud if {word!r} is {'present' if present > absent else 'absent'}"


def _char_tfidf(ngram_range: tuple[int, int]) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char", ngram_range=ngram_range, min_df=2, sublinear_tf=True, dtype=np.float32)


def _logistic_regression() -> LogisticRegression:
    return LogisticRegression(C=10.0, max_iter=1000)


def _said(text: str) -> list[str]:
    """What is said in each line of a dialogue."""
    return [said for _, said in split_lines(canonical(text, Task()))]


def _labels_of_said(record: dict) -> list[bool]:
    return canonical_line_labels(record["input"], record["line_labels"], Task())


def _neutral(texts: Sequence[str]) -> list[str]:
    return [canonical(text, Task()) for text in texts]


def _names(texts: Sequence[str]) -> list[str]:
    return [" ".join(name for name, _ in split_lines(text) if name) or "-" for text in texts]


def _lengths(texts: Sequence[str]) -> np.ndarray:
    return np.log([[len(text), 1 + text.count("\n")] for text in _neutral(texts)])

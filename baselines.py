"""What is reached without a language model: the bar to clear, trained on the model's own train split."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from data.speakers import neutral_speakers, split_lines
from metrics import average_precision_difference, classification_metrics, f1_difference


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


def fit_baselines(train: Sequence[dict]) -> dict[str, Pipeline | DummyClassifier]:
    """The baselines of `build_baselines`, fitted on train records."""
    texts, labels = [record["input"] for record in train], [record["label"] for record in train]
    return {name: classifier.fit(texts, labels) for name, classifier in build_baselines().items()}


def fraud_probability(classifier: Pipeline | DummyClassifier, dialogues: Sequence[str]) -> np.ndarray:
    """[dialogues] probability of fraud."""
    return classifier.predict_proba(list(dialogues))[:, list(classifier.classes_).index(True)]


def against_baselines(records: Sequence[dict], answers: Sequence[bool],
                      fitted: Mapping[str, Pipeline | DummyClassifier], *, scores: np.ndarray | None = None,
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


def _neutral(texts: Sequence[str]) -> list[str]:
    return [neutral_speakers(text) for text in texts]


def _names(texts: Sequence[str]) -> list[str]:
    return [" ".join(name for name, _ in split_lines(text) if name) or "-" for text in texts]


def _lengths(texts: Sequence[str]) -> np.ndarray:
    return np.log([[len(text), 1 + text.count("\n")] for text in _neutral(texts)])

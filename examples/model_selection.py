"""Which model reads handwritten digits best? A foreach over models and their settings.

    python model_selection.py run --max-workers 5
    python save_chart.py model_selection.png

The data are the 1,797 scanned digits that come with scikit-learn. Every combination of a model
and its settings is one task: they run side by side, each in a process of its own, so that a
model that crashes or hangs takes nothing else with it. Look at the result with

    from aflow import Flow

    run = Flow("ModelSelectionFlow").latest_successful_run
    print(run.data.best, run.data.test_accuracy)
    for task in run["evaluate"]:
        print(task.data.candidate, task.data.scores.mean())
"""

# These take seconds to import. They are imported once: tasks are forked from a process that has
# them already. (In Metaflow every task would import them again.)
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from aflow import FlowSpec, Parameter, catch, retry, step


def build(candidate):
    """The untrained model that a candidate describes."""
    kinds = {
        "logistic": lambda **settings: LogisticRegression(max_iter=2000, **settings),
        "forest": lambda **settings: RandomForestClassifier(random_state=0, **settings),
        "svm": SVC,
    }
    return make_pipeline(StandardScaler(), kinds[candidate["model"]](**candidate["settings"]))


class ModelSelectionFlow(FlowSpec):
    """Cross-validate every candidate, pick the best, test it on digits it has never seen."""

    folds = Parameter("folds", help="Parts of the cross-validation", default=5)

    @step
    def start(self):
        x, y = load_digits(return_X_y=True)
        # Arrays leave this task as they are, and the tasks below map them from disk: five workers
        # share one copy.
        self.x_train, self.x_test, self.y_train, self.y_test = train_test_split(
            x, y, test_size=0.25, random_state=0, stratify=y
        )
        self.candidates = [
            *({"model": "logistic", "settings": {"C": c}} for c in (0.01, 0.1, 1.0)),
            *({"model": "forest", "settings": {"n_estimators": n}} for n in (50, 200)),
            *({"model": "svm", "settings": {"C": c}} for c in (0.1, 1.0, 10.0)),
        ]
        print(f"{len(self.y_train)} digits to learn from, {len(self.y_test)} to test with")
        self.next(self.evaluate, foreach="candidates")

    # One unlucky machine must not cost the whole search: try again once, and if it fails for good
    # leave the exception in `failure` and go on.
    @catch(var="failure")
    @retry(times=1, minutes_between_retries=0)
    @step
    def evaluate(self):
        self.candidate = self.input
        self.scores = cross_val_score(
            build(self.candidate), self.x_train, self.y_train, cv=self.folds
        )
        print(f"{self.candidate}: {self.scores.mean():.4f} +/- {self.scores.std():.4f}")
        self.next(self.choose)

    @step
    def choose(self, inputs):
        evaluated = [each for each in inputs if not each.failure]
        # Only numbers are kept here: the models themselves were never stored.
        self.results = sorted(
            ((each.scores.mean(), each.scores.std(), each.candidate) for each in evaluated),
            key=lambda result: result[0],
            reverse=True,
        )
        self.best = self.results[0][2]
        # What every input has in common (the data) passes on by name, without being read.
        self.merge_artifacts(inputs, include=["x_train", "y_train", "x_test", "y_test"])
        self.next(self.test)

    @step
    def test(self):
        self.model = build(self.best).fit(self.x_train, self.y_train)
        self.test_accuracy = self.model.score(self.x_test, self.y_test)
        print(f"best: {self.best}, accuracy on unseen digits: {self.test_accuracy:.4f}")
        self.next(self.end)

    @step
    def end(self):
        self.chart = draw(self.results)


def draw(results):
    """The results as a bar chart: the bytes of a PNG, an artifact like any other."""
    from io import BytesIO

    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    from matplotlib import pyplot

    names = [
        f"{candidate['model']} "
        + ", ".join(f"{name}={value}" for name, value in candidate["settings"].items())
        for _, _, candidate in results
    ]
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    axes.barh(names, [mean for mean, _, _ in results], xerr=[std for _, std, _ in results])
    axes.invert_yaxis()
    axes.set_xlim(0.8, 1.0)
    axes.set_xlabel("accuracy in cross-validation")
    picture = BytesIO()
    figure.savefig(picture, format="png")
    pyplot.close(figure)
    return picture.getvalue()


if __name__ == "__main__":
    ModelSelectionFlow()

"""Where people look at curves: TensorBoard, MLflow and Weights & Biases, written to by a watch.

    gradoscope.watch(model, optimizer, criterion, sinks=[sinks.TensorBoard("runs/first")])

A sink of your own is any object with the two functions of `Sink`. Services work offline: nothing here opens a connection that the
user's own client does not open.
"""

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradoscope.errors import Usage
from gradoscope.integrations._need import need
from gradoscope.watching.outlets import Sink, scalars

if TYPE_CHECKING:
    from gradoscope.diagnosis import Diagnosis

__all__ = ["MLflow", "Sink", "TensorBoard", "WeightsAndBiases", "scalars"]

PREFIX = "gradoscope"


class TensorBoard:
    """Curves and the diagnosis as text in TensorBoard.

    Args:
        writer: a `SummaryWriter` of the user's, or a folder to write into.
        prefix: what stands before every name.
    """

    def __init__(self, writer: Any, *, prefix: str = PREFIX) -> None:
        if not hasattr(writer, "add_scalar"):
            need("tensorboard", "sinks")
            writer = need("torch.utils.tensorboard", "sinks").SummaryWriter(str(writer))
        self.writer, self.prefix = writer, prefix

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by their names at a step."""
        for name, value in values.items():
            self.writer.add_scalar(f"{self.prefix}/{name}", value, step)

    def diagnosis(self, found: "Diagnosis") -> None:
        """Write the diagnosis as text, and the verdict beside it."""
        self.writer.add_text(f"{self.prefix}/verdict", found.headline())
        self.writer.add_text(f"{self.prefix}/diagnosis", f"<pre>{html.escape(str(found))}</pre>")
        self.writer.flush()


class MLflow:
    """Metrics, the verdict as a tag, and the diagnosis as two artifacts of an MLflow run.

    Args:
        run_id: the run; by default the one that is active when something is first written.
        prefix: what stands before every name.
    """

    def __init__(self, run_id: str | None = None, *, prefix: str = PREFIX) -> None:
        self._mlflow = need("mlflow", "sinks")
        self.run_id, self.prefix = run_id, prefix

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by their names at a step, in one batch."""
        # MLflow's names may hold neither brackets nor commas; layers have none.
        self._mlflow.log_metrics({f"{self.prefix}/{name}": v for name, v in values.items()}, step=step, run_id=self._run())

    def diagnosis(self, found: "Diagnosis") -> None:
        """Log the diagnosis as text and as JSON, and tag the run with the verdict."""
        run, client = self._run(), self._mlflow.MlflowClient()
        client.set_tag(run, f"{self.prefix}.verdict", found.verdict)
        client.log_text(run, str(found), f"{self.prefix}/diagnosis.txt")
        client.log_text(run, found.to_json(), f"{self.prefix}/diagnosis.json")

    def _run(self) -> str:
        if self.run_id is None:
            active = self._mlflow.active_run()
            if active is None:
                raise Usage("no MLflow run is active: train inside `with mlflow.start_run():`, or pass MLflow(run_id=...).")
            self.run_id = str(active.info.run_id)
        return self.run_id


class WeightsAndBiases:
    """Curves, the verdict in the summary, and the diagnosis as an artifact of a Weights & Biases run, online or offline.

    The curves have a step axis of their own ("gradoscope/step"), so that the run's own steps may count something else.

    Args:
        run: what `wandb.init(...)` returned; by default the current run.
        prefix: what stands before every name.

    Raises:
        Usage: where there is no run.
    """

    def __init__(self, run: Any = None, *, prefix: str = PREFIX) -> None:
        self._wandb = need("wandb", "sinks")
        self.run, self.prefix = run or self._wandb.run, prefix
        if self.run is None:
            raise Usage("there is no Weights & Biases run: call wandb.init(mode='offline') first, or pass WeightsAndBiases(run).")
        self.run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by their names at a step."""
        self.run.log({f"{self.prefix}/step": step} | {f"{self.prefix}/{name}": v for name, v in values.items()})

    def diagnosis(self, found: "Diagnosis") -> None:
        """Put the verdict into the run's summary and the diagnosis into an artifact."""
        self.run.summary[f"{self.prefix}/verdict"] = found.verdict
        self.run.summary[f"{self.prefix}/headline"] = found.headline()
        artifact = self._wandb.Artifact(f"{self.prefix}-diagnosis", type="diagnosis")
        for name, text in (("diagnosis.txt", str(found)), ("diagnosis.json", found.to_json())):
            with artifact.new_file(name, mode="w", encoding="utf-8") as file:
                file.write(text)
        self.run.log_artifact(artifact)

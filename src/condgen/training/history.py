"""What training recorded: one row of terms per epoch."""

__all__ = ["History", "read_history"]

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.figure


@dataclass(repr=False)
class History:
    """What training recorded: one row an epoch, terms in nats per image.

    Attributes:
        rows: name → number, per epoch.
        best_epoch: the one with the lowest validation loss (or what the objective selects by); without validation the
            last.
        select: the term that chooses the best epoch, and whether its lowest ("min") or highest ("max") value, or that
            of the last epoch ("last").

    Example:
        >>> History([{"epoch": 1, "train_loss": 3.0}, {"epoch": 2, "train_loss": 2.0}])["train_loss"]
        [3.0, 2.0]
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    select: tuple[str, str] = ("loss", "min")

    def __getitem__(self, name: str) -> list[float]:
        """Values of one metric, one per epoch; NaN for epochs in which it was not recorded."""
        if self.rows and not any(name in row for row in self.rows):
            raise KeyError(name)
        return [row.get(name, math.nan) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: dict[str, float]) -> None:
        """Add an epoch.

        Raises:
            FloatingPointError: if its loss is not finite; the row is kept, the best epoch stays.
        """
        self.rows.append(row)
        loss = row.get("validation_loss", row["train_loss"])
        if not math.isfinite(row["train_loss"]) or not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss is no longer finite in epoch {row['epoch']} ({loss}). {self.kept_words()}"
                "Lower the learning rate, or look for damaged images."
            )
        name, sign = f"validation_{self.select[0]}", {"min": 1, "max": -1, "last": 0}[self.select[1]]
        if name not in row and "validation_loss" in row:
            raise ValueError(f"Expected a term {self.select[0]!r} to select by; the objective has {', '.join(row)}.")
        if sign * row.get(name, 0.0) <= min(sign * r.get(name, 0.0) for r in self.rows):
            self.best_epoch = int(row["epoch"])

    def kept_words(self) -> str:
        """What an error says of the model that is there."""
        return f"The model of epoch {self.best_epoch} stays. " if self.best_epoch else ""

    def plot(self) -> "matplotlib.figure.Figure":
        """Bound, log-likelihood and KL per epoch, or an objective's own first terms, in training and validation.

        Raises:
            ValueError: if no epoch was recorded.

        Example:
            >>> row = {"epoch": 1, "train_elbo": -3.0, "train_log_likelihood": -2.0, "train_kl": 1.0}
            >>> len(History([row]).plot().axes)
            3
        """
        from condgen.io.pictures import blank_figure

        if not self.rows:
            raise ValueError("Expected epochs to plot; nothing was recorded yet.")
        figure = blank_figure(figsize=(10, 3), layout="constrained")
        titles = {"elbo": "ELBO", "log_likelihood": "log-likelihood", "kl": "KL"}
        terms = [name.removeprefix("train_") for name in self.rows[0] if name.startswith("train_")]
        bound = [term for term in titles if term in terms]
        shown = bound or terms[:3]
        for axes, term in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for split in ("train", "validation"):
                if f"{split}_{term}" in self.rows[0]:
                    # A single epoch is a point, which a line would not show.
                    style = "." if len(self) == 1 else "-"
                    axes.plot(self["epoch"], self[f"{split}_{term}"], style, label=split)
            axes.set(title=titles.get(term, term), xlabel="epoch", ylabel="nats per image" if bound else "")
            axes.legend()
        return figure

    def to_frame(self) -> Any:
        """All epochs as a DataFrame of pandas: one row an epoch, one column a term.

        Raises:
            ModuleNotFoundError: if pandas is not installed.

        Example:
            >>> History([{"epoch": 1, "train_loss": 3.0}]).to_frame().columns.tolist()
            ['epoch', 'train_loss']
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Expected pandas for a DataFrame: pip install pandas") from error
        return pd.DataFrame(self.rows)

    def __repr__(self) -> str:
        if not self.rows:
            return "History: no epoch yet"
        last = ", ".join(f"{name} {value:.5g}" for name, value in self.rows[-1].items() if name != "epoch")
        return f"History: {len(self)} epochs, the best of them {self.best_epoch}; the last: {last}"

    def _repr_html_(self) -> str:
        """What a notebook shows: the curves, and the last epoch."""
        from condgen.io.pictures import html_table, inline, png

        if not self.rows:
            return "<p>no epoch yet</p>"
        last = [[name, f"{value:.5g}"] for name, value in self.rows[-1].items()]
        told = f"<p>{len(self)} epochs, the best of them {self.best_epoch}. The last one:</p>"
        return f"{inline(png(self.plot()), 'training curves')}{told}{html_table(last)}"

    def to_csv(self) -> str:
        """All epochs as CSV text: a header, then one line per epoch."""
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in row))  # a phase may begin later
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def read_history(folder: str | Path) -> History | None:
    """The epochs in a run's `metrics.csv`, up to one whose loss was not finite; None where there are none.

    Raises:
        ValueError: if the file is damaged.

    Example:
        >>> read_history("/no/such/run") is None
        True
    """
    file, history = Path(folder) / "metrics.csv", History()
    if not file.is_file():
        return None
    try:
        for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))):
            history.add({name: int(value) if name == "epoch" else float(value) for name, value in row.items() if value})
    except FloatingPointError:
        pass  # the run stopped there
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise ValueError(f"{file} is damaged: {error!r}. Delete it to go on without the curves.") from error
    return history if history.rows else None

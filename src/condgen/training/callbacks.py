"""Callbacks: the one way to listen to a training, and to end it early.

A callback is an object with any of the methods of :class:`Callback`; a plain function counts as `on_epoch`. Each method
gets the :class:`~condgen.training.state.TrainingState`, which says how far training is and has the model.
"""

__all__ = ["Callback", "Callbacks", "EarlyStopping", "LambdaCallback", "Log"]

from collections.abc import Callable, Iterable
from typing import Any

from condgen.training.state import TrainingState

Hook = Callable[[TrainingState], object]


class Callback:
    """Listens to a training. Override the methods you need; `state.stop()` ends training after the epoch under way.

    Example:
        >>> import condgen
        >>> class PrintLoss(Callback):
        ...     def on_epoch(self, state):
        ...         print(f"epoch {state.row['epoch']} is done")
        >>> images = condgen.load_smears(32, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=8)
        >>> _ = condgen.fit(model, images, epochs=2, callbacks=[PrintLoss()], progress=False)
        epoch 1 is done
        epoch 2 is done
    """

    def on_start(self, state: TrainingState) -> object:
        """Called before the first step."""

    def on_step(self, state: TrainingState) -> object:
        """Called after every step (after every batch, if gradients are accumulated over several)."""

    def on_validation_step(self, state: TrainingState) -> object:
        """Called after every batch of validation images."""

    def on_epoch(self, state: TrainingState) -> object:
        """Called after every epoch, once it is validated and saved: `state.row` has its terms."""

    def on_end(self, state: TrainingState) -> object:
        """Called when training ends, also when it is stopped or fails."""


class LambdaCallback(Callback):
    """A callback made of functions, each called with the training state.

    Example:
        >>> callback = LambdaCallback(on_step=lambda state: print("step", state.step))
    """

    def __init__(
        self,
        on_start: Hook | None = None,
        on_step: Hook | None = None,
        on_epoch: Hook | None = None,
        on_end: Hook | None = None,
    ) -> None:
        for name, hook in (("on_start", on_start), ("on_step", on_step), ("on_epoch", on_epoch), ("on_end", on_end)):
            if hook is not None:
                setattr(self, name, hook)


class EarlyStopping(Callback):
    """Ends training after this many epochs in a row without a better one.

    Args:
        patience: epochs to wait for a better one, 1 or more.

    Example:
        >>> import condgen
        >>> images = condgen.load_smears(32, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=8)
        >>> callbacks = [EarlyStopping(patience=2)]
        >>> len(condgen.fit(model, images, epochs=3, callbacks=callbacks, progress=False)) <= 3
        True
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_epoch(self, state: TrainingState) -> None:
        """Compare the number of the best epoch with that of this one."""
        best = state.history.best_epoch
        if best and len(state.history) - best >= self.patience:
            state.stop()

    on_start = on_epoch  # a run that is resumed may have waited long enough


class Log(Callback):
    """A callback that writes the terms of every epoch to loggers of Lightning Fabric, such as TensorBoard's.

    Args:
        loggers: the loggers.

    Example:
        >>> from lightning_fabric.loggers import CSVLogger
        >>> callbacks = [Log(CSVLogger("runs/logs"))]
    """

    def __init__(self, *loggers: Any) -> None:
        self.loggers = loggers

    def on_epoch(self, state: TrainingState) -> None:
        """Log the terms by name."""
        terms = {name: value for name, value in state.row.items() if name != "epoch"}
        for logger in self.loggers:
            logger.log_metrics(metrics=terms, step=int(state.row["epoch"]))

    def on_end(self, state: TrainingState) -> None:
        """Write what loggers still hold."""
        for logger in self.loggers:
            logger.finalize("success")


class Callbacks(Callback):
    """Several callbacks as one, called in order.

    Raises:
        TypeError: for something that has none of the methods and cannot be called.

    Example:
        >>> Callbacks([3])
        Traceback (most recent call last):
        TypeError: Expected callbacks with a method such as on_epoch(state), or functions of it; got int.
    """

    def __init__(self, callbacks: Iterable[Any] = ()) -> None:
        self.callbacks = list(map(as_callback, callbacks))

    def on_start(self, state: TrainingState) -> None:  # noqa: D102
        self.call("on_start", state)

    def on_step(self, state: TrainingState) -> None:  # noqa: D102
        self.call("on_step", state)

    def on_validation_step(self, state: TrainingState) -> None:  # noqa: D102
        self.call("on_validation_step", state)

    def on_epoch(self, state: TrainingState) -> None:  # noqa: D102
        self.call("on_epoch", state)

    def on_end(self, state: TrainingState) -> None:  # noqa: D102
        self.call("on_end", state)

    def call(self, name: str, state: TrainingState) -> None:
        """Call this method of all that have it."""
        for callback in self.callbacks:
            if method := getattr(callback, name, None):
                method(state)


def as_callback(callback: Any) -> Any:
    """The callback, or one that calls a function after every epoch.

    Raises:
        TypeError: for anything else.
    """
    if any(hasattr(callback, name) for name in vars(Callback) if name.startswith("on_")):
        return callback
    if callable(callback):
        return LambdaCallback(on_epoch=callback)
    raise TypeError(
        f"Expected callbacks with a method such as on_epoch(state), or functions of it; got {type(callback).__name__}."
    )

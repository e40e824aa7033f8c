"""The event that RLlib's callbacks do not have: the switch from offline to online."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils import force_list

if TYPE_CHECKING:
    from rllib_calql.algorithm import CalQL


class CalQLCallback(RLlibCallback):
    """RLlib's callbacks with Cal-QL's own event. Any `RLlibCallback` with a method of that name gets it too.

    .. code-block:: python

        class KeepThePretrained(CalQLCallback):
            def on_switch_to_online(self, *, algorithm, **kwargs):
                algorithm.save("pretrained")

        config.callbacks(KeepThePretrained)
    """

    def on_switch_to_online(self, *, algorithm: CalQL, metrics_logger: Any = None, **kwargs: Any) -> None:
        """Called once in a run: pre-training and its evaluation are over, no online step has been taken.

        Without an offline phase that is before the first iteration; without an online phase it never is. A
        checkpoint saved here goes on with the online phase, and does not call this again.

        Args:
            algorithm: the running algorithm.
            metrics_logger: RLlib's logger of the algorithm; only the new API stack reports what it is given.
            kwargs: for what later versions add.
        """


def fire_switch_to_online(algorithm: CalQL) -> None:
    """Calls `on_switch_to_online` of the algorithm's callbacks that have it, in their order."""
    for callback in force_list(algorithm.callbacks):
        # RLlib's old way to give several classes is a container that knows RLlib's events only.
        for one in getattr(callback, "_callback_list", [callback]):
            if (method := getattr(one, "on_switch_to_online", None)) is not None:
                method(algorithm=algorithm, metrics_logger=algorithm.metrics)

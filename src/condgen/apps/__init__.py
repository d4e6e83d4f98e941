"""Applications: what stands on the whole library and is used by people directly.

* `balance`: rare classes filled up; `provenance`: what each image of the filled set is;
* `explorer`: a page to play with a model; `benchmarking`: throughput of variants;
* `export`: graphs that run without condgen; `hub`: the layout of the Hugging Face hub.
"""

__all__ = ["Balancer", "Provenance", "balance", "write_balanced"]

from typing import TYPE_CHECKING

from condgen.io.lazy import lazily

if TYPE_CHECKING:
    from condgen.apps.balance import Balancer, balance
    from condgen.apps.provenance import Provenance, write_balanced

__getattr__, __dir__ = lazily(
    __name__, {"balance": ["Balancer", "balance"], "provenance": ["Provenance", "write_balanced"]}
)

"""Applications: what stands on the whole library and is used by people directly.

* `balance`: rare classes filled up; `explorer`: a page to play with a model; `benchmarking`: throughput of variants;
* `export`: graphs that run without condgen; `hub`: the layout of the Hugging Face hub.
"""

__all__ = ["Balancer", "Provenance", "balance", "write_balanced"]

from typing import TYPE_CHECKING

from condgen.io.lazy import lazily

if TYPE_CHECKING:
    from condgen.apps.balance import Balancer, Provenance, balance, write_balanced

__getattr__, __dir__ = lazily(__name__, {"balance": ["Balancer", "Provenance", "balance", "write_balanced"]})

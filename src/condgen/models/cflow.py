r"""The conditional flow: images grow out of noise along a velocity field, in pixel space; flow matching or diffusion.

Generative story: a label y gives a condition c; from noise :math:`x_0 \sim \mathcal N(0, I)` an image is
:math:`x_1`, where :math:`\dot x_t = v(x_t, t, c)`. Which path leads from noise to image in training makes it flow
matching (a straight one) or a diffusion model with v-prediction and a cosine schedule (an arc); see
:class:`~condgen.distributions.priors.flow_matching.FlowMatching`, which both a VAE's latents and these pixels are drawn
by.
"""

__all__ = ["ConditionalFlow", "conditional_flow"]

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.losses.flow_matching import FlowMatchingLoss
from condgen.models.generator import Generator, Images, shape
from condgen.nn.conditioners import OneHot, Unconditional
from condgen.nn.velocities import UNetVelocity

CENTRE, SPREAD = 0.5, 0.25  # of pixels of a usual image, which noise is to be as wide as


class ConditionalFlow(Generator):
    """A conditional flow or diffusion model assembled from parts that honour the contracts of their shelves.

    It has no latents and no encoder. An image costs as many passes through its network as its path has steps, Heun's
    count twice, and guidance doubles them.

    Args:
        conditioner: y → c.
        flow: from noise to images of `image_shape`, pixels standardised.
        image_shape: (channels, height, width); read from the flow.

    References:
        Flow matching for generative modeling (Lipman et al., 2023), https://arxiv.org/abs/2210.02747; Denoising
        diffusion probabilistic models (Ho et al., 2020), https://arxiv.org/abs/2006.11239; v-prediction: Progressive
        distillation for fast sampling of diffusion models (Salimans & Ho, 2022), https://arxiv.org/abs/2202.00512

    Example:
        >>> model = conditional_flow((1, 8, 8), num_classes=2, widths=(8, 8), depth=1)
        >>> model.sample([0, 1, 1], seed=0).shape
        torch.Size([3, 1, 8, 8])
    """

    flow: Any

    def __init__(
        self, *, conditioner: nn.Module, flow: nn.Module, image_shape: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__(conditioner, image_shape or getattr(flow, "shape", None))
        self.flow = flow

    def draw(self, y: Shaped[Tensor, "batch ..."], noise: dict[str, Tensor]) -> Images:
        """Labels and noise → images in [0, 1]."""
        return (CENTRE + SPREAD * self.flow.draw(self.condition(y), noise["z"])).clamp(0, 1)

    def vary(
        self,
        x: Images,
        y: Shaped[Tensor, "batch ..."],
        noise: dict[str, Tensor],
        strength: float,
        background: Any = None,
    ) -> Images:
        """Images near x: noise is added to them, and the flow takes it away again (SDEdit).

        Raises:
            ValueError: for a background, which only maps of latents have.
        """
        if background is not None:
            raise ValueError("Expected background=None for a flow of pixels, which has no map of latents.")
        varied = self.flow.vary((x - CENTRE) / SPREAD, self.condition(y), noise["z"], strength)
        return (CENTRE + SPREAD * varied).clamp(0, 1)

    def matching(self, x: Images, y: Shaped[Tensor, "batch ..."], noise: dict[str, Tensor]) -> Float[Tensor, " batch"]:
        """The squared error of the velocity at a random time, a mean over pixels."""
        c = self.condition(y, noise.get("label"))
        component = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self.flow.matching((x - CENTRE) / SPREAD, c, component, noise)

    trial = matching

    def objective(self) -> FlowMatchingLoss:
        """Velocities are to be those of the path."""
        return FlowMatchingLoss()

    @property
    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that training on one image needs."""
        return self.flow.training_noise | self.label_noise

    @property
    def sampling_noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that drawing one image needs."""
        return {"z": tuple(self.flow.noise_shape)}

    @property
    def flows(self) -> dict[str, str]:
        """Name of each part → what goes in and comes out."""
        c, x = self.condition_text, shape(self.image_shape or ("?",))
        return {"conditioner": f"y → {c}", "flow": f"noise {x}, {c} → x {x}"}


def conditional_flow(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    path: Literal["straight", "cosine"] = "straight",
    patch: int = 2,
    widths: Sequence[int] = (48, 96),
    depth: int = 1,
    heads: int = 4,
    steps: int = 12,
    solver: Literal["heun", "euler"] = "heun",
    guidance: float = 0.0,
    conditioner: nn.Module | None = None,
    velocity: nn.Module | None = None,
) -> ConditionalFlow:
    """A conditional flow, or diffusion model, from numbers.

    Args:
        image_shape: (channels, height, width).
        num_classes: labels are integers in [0, num_classes); 0 leaves labels out.
        path: "straight" for flow matching, "cosine" for diffusion with v-prediction.
        patch: side of the squares of pixels that are stacked into channels before the first layer.
        widths: channels of each map, the largest map first.
        depth: residual blocks on each map, down and up.
        heads: of the attention on the smallest map; 0: none.
        steps: of the way from noise to image.
        solver: "heun" (two evaluations a step, second order) or "euler".
        guidance: above 0, truer labels at twice the cost.
        conditioner: instead of one-hot labels.
        velocity: instead of the network of these numbers; see :mod:`condgen.nn.velocities`.

    Raises:
        ValueError: for numbers out of range.

    Example:
        >>> conditional_flow((3, 28, 28), num_classes=8, path="cosine").flow.path
        'cosine'
    """
    conditioner = conditioner or (OneHot(num_classes) if num_classes else Unconditional())
    dim: int = conditioner.dim  # type: ignore[assignment]
    velocity = velocity or UNetVelocity(image_shape, dim, patch=patch, widths=widths, depth=depth, heads=heads)
    flow = FlowMatching(image_shape, dim, velocity=velocity, steps=steps, solver=solver, guidance=guidance, path=path)
    return ConditionalFlow(conditioner=conditioner, flow=flow, image_shape=image_shape)

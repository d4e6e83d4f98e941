"""Networks: tensors in, tensors out. Nothing here knows a probability.

Contracts: a conditioner turns labels into c, `(batch, dim)`; an encoder (x, c) into the parameters of a posterior; a
decoder (z, c) into those of a likelihood; a discriminator (x, c) into scores and features; a velocity network (z, t, c)
into dz/dt. Any `nn.Module` that honours a call is welcome; nobody has to subclass.

* `conditioners`, `encoders`, `decoders`, `discriminators`, `velocities`, built from `layers`;
* `parts`: what every part of condgen remembers of how it was built; `label_free`: networks that are not told the label;
* `pruning`: weights that can never matter are left out;
* `precision`, `memory`, `cuda_graphs`: how networks are run on this machine.
"""

__all__ = [
    "ChannelNorm",
    "Concatenate",
    "Continuous",
    "ConvBlock",
    "ConvDiscriminator",
    "ConvEncoder",
    "DeconvDecoder",
    "Embedding",
    "FiLM",
    "Joint",
    "LabelChannels",
    "LabelConv2d",
    "LabelDropout",
    "LabelFree",
    "MLPVelocity",
    "MultiLabel",
    "OneHot",
    "ResNetDecoder",
    "ResNetDiscriminator",
    "ResNetEncoder",
    "ResNetVelocity",
    "ResidualBlock",
    "SkipLatent",
    "UNetVelocity",
    "Unconditional",
    "bounded",
    "full",
    "halvings",
    "join",
    "live_taps",
    "map_sizes",
    "trimmed",
]

from condgen.nn.conditioners import Continuous, Embedding, Joint, LabelDropout, MultiLabel, OneHot, Unconditional
from condgen.nn.decoders import DeconvDecoder, ResNetDecoder, SkipLatent
from condgen.nn.discriminators import ConvDiscriminator, ResNetDiscriminator
from condgen.nn.encoders import ConvEncoder, ResNetEncoder
from condgen.nn.label_free import LabelFree
from condgen.nn.layers import (
    ChannelNorm,
    Concatenate,
    ConvBlock,
    FiLM,
    LabelChannels,
    LabelConv2d,
    ResidualBlock,
    bounded,
    full,
    halvings,
    join,
    live_taps,
    map_sizes,
    trimmed,
)
from condgen.nn.velocities import MLPVelocity, ResNetVelocity, UNetVelocity

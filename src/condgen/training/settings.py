"""Names that the command line offers; nothing here imports torch."""

__all__ = ["NETWORKS", "RECIPE_NAMES"]


RECIPE_NAMES = (
    *("default", "bloodmnist_reference", "latent_map", "fast", "sharp", "bloodmnist_fast", "bloodmnist_sharp"),
    *("gan", "flow", "diffusion", "bloodmnist_gan", "bloodmnist_diffusion", "smears_demo"),
)
NETWORKS = ("reference", "reference_untrimmed", "conv", "resnet", "resnet_map", "gan", "flow")  # that can be timed

"""Makers of distilled sets, one file a method; ``METHODS`` names them."""

from ddanalysis.distill.baselines import class_mean, herding, k_means, random_images
from ddanalysis.distill.bptt import bptt as bptt_whole
from ddanalysis.distill.bptt import rat_bptt
from ddanalysis.distill.clom import regularised
from ddanalysis.distill.dataset_distillation import dd, sldd
from ddanalysis.distill.dm import distribution_matching
from ddanalysis.distill.gradient_matching import dc, dsa
from ddanalysis.distill.label_distillation import ld, ld_images, ld_images_ridge, ld_ridge
from ddanalysis.distill.making import Job, Made, Method
from ddanalysis.distill.trajectory import trajectory_matching

METHODS = {
    "dc": Method(dc, version=1, networked=True),
    "dsa": Method(dsa, version=1, networked=True),
    "dm": Method(distribution_matching, version=2, networked=True),
    "mtt": Method(trajectory_matching, version=2, networked=True),
    "bptt": Method(bptt_whole, version=1, networked=True),
    "rat": Method(rat_bptt, version=1, networked=True),
    "clom_dc": Method(regularised(dc, "dc"), version=1, networked=True),
    "clom_dsa": Method(regularised(dsa, "dsa"), version=1, networked=True),
    "clom_dm": Method(regularised(distribution_matching, "dm"), version=1, networked=True),
    "clom_mtt": Method(regularised(trajectory_matching, "mtt"), version=1, networked=True),
    "clom_bptt": Method(regularised(bptt_whole, "bptt"), version=1, networked=True),
    "dd": Method(dd, version=2, networked=True),
    "sldd": Method(sldd, version=2, networked=True),
    "ld": Method(ld, version=1, networked=True),
    "ld_ridge": Method(ld_ridge, version=1, networked=True),
    "ld_images": Method(ld_images, version=1, networked=True),
    "ld_images_ridge": Method(ld_images_ridge, version=1, networked=True),
    "random": Method(random_images, version=1),
    "class_mean": Method(class_mean, version=2),
    "k_means": Method(k_means, version=1),
    "herding": Method(herding, version=1, networked=True),
}

__all__ = ["METHODS", "Job", "Made", "Method"]

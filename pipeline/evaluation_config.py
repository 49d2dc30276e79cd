"""What an evaluation measures, on how many images and how."""

import math
from dataclasses import dataclass

from pipeline.metric import Metric, parse
from pipeline.tasks import Device, Precision
from stylegan.draws import MAX_SEED

_LEAST_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured, on how many images and how."""

    metrics: tuple[str, ...] = ("fid", "kid")
    """Names such as fid, pr, is, fid50k_mix2, ppl_wend (see `Metric`); none for no evaluation."""
    num_images: int = 50_000
    """Generated images of metrics without a number; FID of fewer than 50,000 is biased upwards."""
    num_reals: int = 0
    """Real images, spread evenly over the data set; 0 for as many as num_images, at most all."""
    every_kimg: float = 0
    """Thousands of images between evaluated checkpoints; 0 for the last one alone."""
    batch: int = 32
    """Images that go through the networks together; another value gives other last bits."""
    best_by: str = ""
    """Value whose best checkpoint is kept and may get the alias, as recall50k; empty: the first."""
    workers: int = 1
    """Tasks the batches are divided among; changes speed alone."""
    worker_cpus: float = 1
    """Of the cluster for each worker; a fraction where several may share one."""
    worker_gpus: float | None = None
    """Likewise; null for one where the cluster has some."""
    threads: int = 1
    """Threads of torch in each task; another value gives other last bits on a CPU."""
    device: Device = "auto"
    """auto: CUDA where there is one."""
    precision: Precision = "float32"
    """Of the feature network; bfloat16 is fast on GPUs and CPUs that have it, else very slow."""
    seed: int = 0
    """Of latents, noise inputs, drawn labels and mirror flips."""
    psi: float = 1.0
    """Truncation of the generated images; 1 for none."""
    cutoff: int | None = None
    """Layers that are truncated, counted from the coarsest; null for all."""
    mirror: bool = False
    """Flip a keyed half of the real images left to right."""
    crop: bool = True
    """Path lengths look at the middle, where faces are, as StyleGAN's do; false for all of it."""
    weights: str = ""
    """Folder or URL with the feature networks; empty for STYLEGAN_WEIGHTS and `make weights`."""

    def __post_init__(self) -> None:
        least = {
            "num_images": _LEAST_IMAGES,
            "batch": 1,
            "workers": 1,
            "threads": 1,
            "every_kimg": 0,
            "worker_cpus": 0,
        }
        for key, value in least.items():
            if not getattr(self, key) >= value:
                raise ValueError(
                    f"evaluation.{key} is {getattr(self, key)}; choose at least {value}"
                )
        self._check_metrics()
        if self.worker_gpus is not None and not self.worker_gpus >= 0:
            raise ValueError(
                f"evaluation.worker_gpus is {self.worker_gpus}; choose 0 or more, a fraction such "
                f"as 0.5 where workers share one, or null"
            )
        if self.num_reals < 0 or self.num_reals == 1:
            raise ValueError(
                f"evaluation.num_reals is {self.num_reals}; choose 0 (as many as num_images) or "
                f"at least 2"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"evaluation.seed is {self.seed}; choose from 0 to {MAX_SEED}")
        if not math.isfinite(self.psi):
            raise ValueError(f"evaluation.psi is {self.psi}; choose a number, 1 for no truncation")
        if self.cutoff is not None and self.cutoff < 0:
            raise ValueError(
                f"evaluation.cutoff is {self.cutoff}; choose a number of layers or null for all"
            )

    def _check_metrics(self) -> None:
        try:
            wanted = self.wanted
        except ValueError as err:
            raise ValueError(f"evaluation.metrics: {err}") from err
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"evaluation.metrics is {list(self.metrics)}; name each of them once")
        for metric in wanted:
            if metric.count < _LEAST_IMAGES:
                raise ValueError(
                    f"evaluation.metrics has {metric.names[0]}; choose at least {_LEAST_IMAGES} "
                    f"images"
                )

        names = [name for metric in wanted for name in metric.names]
        if self.best_by and self.best_by not in names:
            raise ValueError(
                f"evaluation.best_by is {self.best_by!r}, which is not measured; choose from "
                f"{', '.join(names) or 'nothing: evaluation.metrics is empty'}"
            )

    @property
    def decisive(self) -> str:
        """The value that says which checkpoint is best; empty where nothing is measured."""
        return self.best_by or next((metric.names[0] for metric in self.wanted), "")

    @property
    def wanted(self) -> list[Metric]:
        """The metrics, with their numbers of images.

        Raises:
            ValueError: One is none.
        """
        return [parse(name, self.num_images) for name in self.metrics]

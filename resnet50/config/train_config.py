"""Every setting of a training run: its default, unit and check.

`TrainConfig` is the only list of them. A field's metadata holds its help text, its allowed values,
and whether it may change when a run is resumed: settings that shape the result may not; settings
that only say where or how long to run, or what to print, may.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from resnet50.config import checks, size_stages
from resnet50.config.fields import check_value, setting, shown

NO_MIRROR = "none"
LEAST_CHECKPOINTS = 2  # the newest may be damaged: then a run resumes from the one before


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one run. Raises ValueError naming the option, its value and what to do."""

    data_dir: str = setting(
        "",
        "folder with train.pack and val.pack, or train/CLASS/* and val/CLASS/* (default: found, "
        "see dataset_paths.py)",
        may_change=True,
    )
    run_dir: str = setting(
        "",
        "folder of this run: checkpoints, log, curves (default: runs/RECIPE; without any flag the "
        "newest unfinished run)",
        may_change=True,
    )
    mirror: str = setting(
        NO_MIRROR,
        "copy each checkpoint to s3://BUCKET/PREFIX, or to a folder on another disk; with an empty "
        f"run_dir, begin from what is there (docs/reliability.md); {NO_MIRROR}: copy nothing",
        may_change=True,
    )
    recipe: str = setting("", "name of the preset these settings started from")

    # Model
    layers: tuple[int, ...] = setting((3, 4, 6, 3), "blocks in each of the four stages", at_least=1)
    width: int = setting(64, "channels after the stem", at_least=8)
    base_width: int = setting(
        64,
        "inner width of the blocks, in 64ths of their stage's: less for a pruned network "
        "(export.py --prune), 128 for Wide ResNet50-2",
        at_least=1,
    )
    zero_init_gamma: bool = setting(True, "start every residual block as the identity")
    blurpool: bool = setting(False, "blur before every strided convolution and the max pool")
    v1_strides: bool = setting(
        False, "the paper's ResNet v1: stride in the first 1x1 of a block, not in its 3x3"
    )
    init_from: str = setting(
        "",
        "weights to start from: a run, a checkpoint, an export, any file or folder of such a "
        "network, or `torchvision`; different classes get a new head",
    )

    # Images
    image_size: int = setting(224, "side of a training crop in pixels", at_least=32)
    start_image_size: int = setting(
        0, "side of a training crop before grow_start_epoch; 0: always image_size", at_least=0
    )
    grow_start_epoch: float = setting(
        0.0, "epoch at which training crops begin to grow from start_image_size", at_least=0
    )
    grow_end_epoch: float = setting(
        0.0, "epoch at which training crops reach image_size", at_least=0
    )
    image_size_multiple: int = setting(
        32, "growing sizes are rounded to multiples of this many pixels", at_least=1
    )
    size_stages: str = setting(
        size_stages.NONE,
        "sizes of the training crops and each one's percent of the compute, such as "
        "96:20,160:40,224:40; none: as start_image_size says (EfficientTrain++, Wang et al. 2024, "
        "arXiv:2405.08768; it cost us 13 points in short runs of two seeds: benchmarks/methods.py)",
    )
    shuffle_sizes: bool = setting(
        False,
        "the epochs of --size_stages in random order, instead of stage after stage (Hoffer et al. "
        "2019, arXiv:1908.08986; it cost us 6 points in short runs of two seeds)",
    )
    eval_image_size: int = setting(
        0, "side of the evaluation crop in pixels; 0: image_size", at_least=0
    )
    eval_resize_size: int = setting(
        0, "shorter side before the evaluation crop, in pixels; 0: crop * 256 / 224", at_least=0
    )
    upright: str = setting(
        "auto",
        "turn pictures upright, as EXIF says; auto: except ImageNet and other data sets with "
        "published results; legacy: as in runs from before --upright",
        choices=("auto", "yes", "no", "legacy"),
        may_be_auto=True,
    )
    min_crop_scale: float = setting(
        0.08, "smallest share of a picture's area that a training crop covers", above=0, at_most=1
    )
    flip: bool = setting(True, "mirror half of the training images")
    alternate_flips: bool = setting(
        False,
        "mirror every image in every second epoch, half of them from the first one on, instead of "
        "half of them at random (Jordan 2024, arXiv:2404.00498; no difference in our runs of three "
        "epochs)",
    )
    trivial_augment: bool = setting(False, "one random change of color or shape per image")
    random_erasing: float = setting(
        0.0, "share of the training images that get a gray rectangle", at_least=0, at_most=1
    )
    mixup_alpha: float = setting(
        0.0, "blend pairs of images with a weight from Beta(alpha, alpha); 0: off", at_least=0
    )
    cutmix_alpha: float = setting(
        0.0,
        "paste a rectangle of one image into another, its area from Beta(alpha, alpha); with "
        "--mixup_alpha, each gets half of the batches; 0: off",
        at_least=0,
    )

    # Optimization
    epochs: int = setting(50, "passes over the training images", at_least=1)
    total_batch_size: int = setting(
        256, "images per optimizer step, over all GPUs and micro-batches", at_least=1
    )
    device_batch_size: int | Literal["auto"] = setting(
        0,
        "images per micro-batch, which is also the batch-norm group; 0: total_batch_size divided "
        "by the number of GPUs of the first start; auto: the most that fit into memory",
        at_least=0,
        may_be_auto=True,
    )
    optimizer: str = setting("sgd", "SGD, or AdamW as in torch", choices=("sgd", "adamw"))
    max_lr: float | Literal["auto"] = setting(
        0.175, "peak learning rate; auto: as lr_finder.py recommends", above=0, may_be_auto=True
    )
    momentum: float = setting(0.9, "SGD momentum, AdamW's first beta", at_least=0, at_most=1)
    nesterov: bool = setting(False, "Nesterov momentum")
    weight_decay: float = setting(
        1e-4, "weight decay of convolutions and classifier; norms and biases have none", at_least=0
    )
    decay_norms: bool = setting(False, "weight decay on norms and biases too")
    decoupled_weight_decay: bool = setting(
        False, "decay SGD's weights by weight_decay x lr / max_lr per step, not in the gradient"
    )
    fused_optimizer: bool = setting(
        True,
        "update all weights in one pass over memory; not with decoupled_weight_decay",
    )
    loss: str = setting(
        "ce", "cross-entropy, or binary cross-entropy over all classes", choices=("ce", "bce")
    )
    label_smoothing: float = setting(
        0.0, "probability mass spread over all classes", at_least=0, at_most=1
    )
    clip_grad_norm: float = setting(0.0, "largest gradient norm; 0: no clipping", at_least=0)
    ema_decay: float = setting(
        0.0,
        "decay of the averaged weights, which are then the ones evaluated; 0: none",
        at_least=0,
        at_most=0.999999,
    )
    ema_every_steps: int = setting(1, "steps between updates of the averaged weights", at_least=1)
    ema_rescale: bool = setting(
        False, "scale ema_decay with the images per update and the epochs, as torchvision does"
    )
    seed: int = setting(0, "seed of weights, order and augmentation", at_least=0, at_most=2**63 - 1)

    # Schedule, stepped once per optimizer step
    schedule: str = setting(
        "onecycle",
        "shape of the learning rate over the run",
        choices=("onecycle", "warmup_cosine", "step", "plateau"),
    )
    pct_start: float = setting(
        0.3, "onecycle: share of the steps in which the rate rises", at_least=0, at_most=1
    )
    anneal_strategy: str = setting(
        "cos", "onecycle: shape of rise and fall", choices=("cos", "linear")
    )
    three_phase: bool = setting(False, "onecycle: fall as long as it rose, then to the last rate")
    div_factor: float = setting(25.0, "onecycle: the first rate is max_lr / this", above=0)
    final_div_factor: float = setting(1e4, "onecycle: the last rate is the first / this", above=0)
    cycle_momentum: bool = setting(
        False, "onecycle: cycle momentum inversely to the learning rate, from 0.95 to 0.85 and back"
    )
    warmup_epochs: float = setting(
        0.0, "warmup_cosine, step, plateau: epochs of a linear rise to max_lr", at_least=0
    )
    warmup_factor: float = setting(
        0.01, "where that rise starts, as a share of max_lr", at_least=0, at_most=1
    )
    min_lr: float = setting(0.0, "warmup_cosine: the last learning rate", at_least=0)
    step_epochs: int = setting(30, "step: epochs between drops of the rate", at_least=1)
    step_factor: float = setting(0.1, "step: factor of each drop", above=0, at_most=1)
    plateau_epochs: int = setting(
        0, "final epochs, whose rate follows the validation loss instead", at_least=0
    )
    plateau_lr: float = setting(0.0, "first rate of those epochs; 0: max_lr / 10", at_least=0)
    plateau_factor: float = setting(0.1, "plateau: factor of each drop", above=0, at_most=0.999)
    plateau_patience: int = setting(
        2, "plateau: evaluations without a lower validation loss before a drop", at_least=0
    )

    # Arithmetic
    amp: str = setting(
        "auto",
        "mixed precision: bf16, fp16 with gradient scaling, fp32; auto: bf16 where the hardware "
        "has it, else fp16 on a GPU and fp32 on a CPU",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    channels_last: bool = setting(True, "NHWC memory layout, which tensor cores prefer")
    compile: bool = setting(
        False,
        "torch.compile the model: 1.4 times the images/s on an H100, a minute longer to start",
    )
    deterministic: bool = setting(
        False, "bitwise repeatable on a GPU too, but slower (a CPU always is)", may_change=True
    )

    # The run
    num_workers: int = setting(
        -1,
        "loader processes per GPU; -1: from the CPU cores",
        at_least=-1,
        at_most=1024,
        may_change=True,
    )
    max_steps: int = setting(
        0,
        "stop after this many optimizer steps, schedule unchanged; 0: after all epochs",
        at_least=0,
        may_change=True,
    )
    max_minutes: float = setting(
        0.0,
        "stop after this much time, schedule unchanged; 0: no limit",
        at_least=0,
        may_change=True,
    )
    eval_every_epochs: int = setting(
        1, "evaluate every N epochs, and at the end; 0: at the end only", at_least=0
    )
    target_top1: float = setting(
        0.0,
        "stop when the validation top-1 reaches this many percent; 0: off",
        at_least=0,
        at_most=100,
        may_change=True,
    )
    save_every_steps: int = setting(
        0, "checkpoint every N steps; 0: by time only", at_least=0, may_change=True
    )
    save_every_minutes: float = setting(
        5.0, "checkpoint every X minutes, and at the end of every epoch", above=0, may_change=True
    )
    hang_minutes: float = setting(
        10.0,
        "a run that makes no step for this many minutes is ended, and started again by "
        "`python train.py`",
        above=0,
        may_change=True,
    )
    keep_checkpoints: int = setting(
        3,
        "newest checkpoints to keep, besides the best",
        at_least=LEAST_CHECKPOINTS,
        may_change=True,
    )
    max_bad_images: int = setting(
        20, "stop when more files than this cannot be decoded", at_least=0, may_change=True
    )
    log_every_steps: int = setting(
        20,
        "steps between lines of log.jsonl and updates of the display",
        at_least=1,
        may_change=True,
    )
    log_every_s: float = setting(
        10.0,
        "seconds between printed lines if there is no terminal",
        at_least=0,
        may_change=True,
    )
    spot_watch: str = setting(
        "auto",
        "save and stop when EC2 reclaims this spot instance; auto: if its metadata service "
        "answers; on: also warn if it does not",
        choices=("auto", "on", "off"),
        may_change=True,
    )
    tensorboard: bool = setting(
        False,
        "also write the curves for TensorBoard, into the run's folder (needs its package)",
        may_change=True,
    )
    price_per_hour: float = setting(
        0.0,
        "price of this machine in dollars per hour, to show what the run costs",
        at_least=0,
        may_change=True,
    )

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            check_value(item, getattr(self, item.name))
        if len(self.layers) != 4:
            raise ValueError(f"--layers needs four numbers, got {shown(self.layers)}")
        checks.check(self)

    def to_json(self) -> dict[str, object]:
        """The settings as plain JSON values (tuples become lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "TrainConfig":
        """The inverse of `to_json`. Raises ValueError for an unknown setting or a bad value."""
        unknown = sorted(set(values) - {item.name for item in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}: written by another version")
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
        )

    @property
    def eval_crop(self) -> int:
        """Side of the evaluation crop in pixels."""
        return self.eval_image_size or self.image_size

    @property
    def eval_resize(self) -> int:
        """Shorter side of a picture before the evaluation crop, in pixels."""
        return self.eval_resize_size or round(self.eval_crop * 256 / 224)

    @property
    def curve_epochs(self) -> int:
        """Epochs before the plateau's."""
        return self.epochs - self.plateau_epochs

    @property
    def ema_update_decay(self) -> float:
        """Decay of the averaged weights at an update.

        With ema_rescale as in torchvision's references/classification/train.py: an update weighs
        (1 - ema_decay) x images since the last one / epochs, so that the average spans the same
        share of a run whatever its batch size and length.
        """
        if not self.ema_rescale:
            return self.ema_decay
        images = self.total_batch_size * self.ema_every_steps
        return 1 - (1 - self.ema_decay) * images / self.epochs
